"""The loop: order, seeds, optimizer, what is saved, what stops it; scores against the obvious slow way."""

import contextlib
import csv
import dataclasses

import pytest
import torch

from data_utils import CIRRDataset, collate_fn, targetpad_transform
from lavis.models import load_model_and_preprocess
from sprc.benchmarks.retrieval_task import cirr_validation
from sprc.core.errors import InputError
from sprc.core.process_group import ALONE, World
from sprc.core.runtime import Runtime, choose_runtime
from sprc.training import engine
from sprc.training.config import PRESETS, TrainConfig, find_preset
from sprc.training.gradients import total_loss

CPU = Runtime(torch.device("cpu"), torch.float32)


@pytest.fixture
def config(demo) -> TrainConfig:
    return TrainConfig("CIRR", data_path=demo, batch_size=8, num_workers=0, num_epochs=2, learning_rate=1e-3)


@pytest.fixture
def parts(demo, small_yaml):
    """Model, training set, function from batch to samples, validation."""
    torch.manual_seed(0)
    model, _, texts = load_model_and_preprocess("blip2_cir_align_prompt", small_yaml)
    preprocess = targetpad_transform(dim=56)
    validation = cirr_validation(CIRRDataset("val", "classic", preprocess, data_path=demo), texts["eval"])

    def make_samples(batch):
        return dict(zip(("image", "target", "text_input"), batch, strict=True))

    return model, CIRRDataset("train", "relative", preprocess, data_path=demo), make_samples, validation


def read_csv(path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = engine.EpochSampler(50, 1, seed, ALONE)
        sampler.epoch = epoch
        return list(sampler)

    assert sorted(order(0, 0)) == list(range(50))
    torch.manual_seed(5)
    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize(("ranks", "batch"), [(1, 8), (2, 4), (3, 5)])
def test_the_ranks_share_the_order_step_by_step(ranks, batch):
    samplers = [engine.EpochSampler(50, batch, 7, World(rank, ranks)) for rank in range(ranks)]
    shares = [list(sampler) for sampler in samplers]
    whole = list(engine.EpochSampler(50, ranks * batch, 7, ALONE))
    steps = range(0, len(shares[0]), batch)
    assert [item for step in steps for share in shares for item in share[step : step + batch]] == whole
    assert len(whole) == 50 // (ranks * batch) * ranks * batch
    for sampler, share in zip(samplers, shares, strict=True):
        sampler.start = 1
        assert list(sampler) == share[batch:]


def test_losses_and_weights_must_share_their_names():
    loss = torch.tensor(2.0)
    assert total_loss({"a": loss, "b": loss}, {"a": 1.0, "b": 0.5}) == 3
    with pytest.raises(KeyError, match="same names"):
        total_loss({"a": loss}, {"a": 1.0, "b": 1.0})


@pytest.mark.parametrize(("epochs", "planned"), [(2, 80), (100, 100)])
def test_the_schedule_is_planned_as_upstream(config, epochs, planned):
    model = torch.nn.Linear(2, 2)
    config = dataclasses.replace(config, num_epochs=epochs)
    found = engine.Optimization(model, config, steps_per_epoch=3, runtime=CPU)
    rates, momenta = [], []
    for _ in range(epochs * 3):
        rates.append(found.learning_rate)
        momenta.append(found.optimizer.param_groups[0]["betas"][0])
        model(torch.ones(2)).sum().backward()
        found.step()
    other = torch.optim.AdamW(model.parameters(), lr=1e-3)
    expected = torch.optim.lr_scheduler.OneCycleLR(
        other, max_lr=1e-3, pct_start=1 / 50, steps_per_epoch=3, epochs=planned
    )
    for rate, momentum in zip(rates, momenta, strict=True):
        assert (rate, momentum) == (expected.get_last_lr()[0], other.param_groups[0]["betas"][0])
        other.step()
        expected.step()
    group = found.optimizer.param_groups[0]
    assert (group["betas"][1], group["eps"], group["weight_decay"]) == (0.98, 1e-7, 0.05)


def test_scores_match_one_query_at_a_time(parts, config):
    model, _, _, validation = parts
    (task,) = validation.tasks.values()
    found = engine.score_queries(model, task, dataclasses.replace(config, batch_size=5, memory_mib=0.01), CPU)
    gallery = torch.stack([task.gallery[i][1] for i in range(len(task.gallery))])
    features, embeds = model.extract_target_features(gallery)
    for query, (name, caption) in enumerate(zip(task.reference_names, task.captions, strict=True)):
        row = task.gallery_names.index(name)
        expected = model.inference(embeds[row : row + 1], features, [caption])
        torch.testing.assert_close(found[query], expected[0], atol=1e-5, rtol=0)
    assert not model.training


def test_scores_are_float32_while_training_is_not(parts, config):
    """As upstream, whose Q-Former evaluates without autocast; another precision only where it is asked for."""
    model, _, _, validation = parts
    (task,) = validation.tasks.values()
    mixed, half = (Runtime(CPU.device, torch.bfloat16, scoring) for scoring in (torch.float32, torch.bfloat16))
    expected = engine.score_queries(model, task, config, CPU)
    assert torch.equal(engine.score_queries(model, task, config, mixed), expected)
    assert not torch.equal(engine.score_queries(model, task, config, half), expected)


def test_a_micro_batch_bounds_validation_as_well(parts, config, monkeypatch):
    model, _, _, validation = parts
    (task,) = validation.tasks.values()
    sizes, encode = [], model.extract_target_features
    monkeypatch.setattr(model, "extract_target_features", lambda images: sizes.append(len(images)) or encode(images))
    engine.score_queries(model, task, dataclasses.replace(config, batch_size=64, micro_batch=3), CPU)
    assert max(sizes) == 3


@pytest.mark.parametrize(
    ("flags", "files"),
    [
        ({}, set()),
        ({"save_training": True}, {"tuned_clip_last.pt"}),
        ({"save_best": True}, {"tuned_clip_arithmetic.pt"}),
        ({"save_training": True, "save_best": True}, {"tuned_clip_last.pt", "tuned_clip_arithmetic.pt"}),
    ],
)
def test_what_is_saved(parts, config, tmp_path, flags, files):
    config = dataclasses.replace(config, num_epochs=1, **flags)
    model, train_set, make_samples, validation = parts
    best = engine.fit(model, train_set, make_samples, validation, config, CPU, tmp_path)
    assert {path.name for path in tmp_path.glob("saved_models/*")} == files
    rows = read_csv(tmp_path / "train_metrics.csv")
    assert [list(row) for row in rows] == [["epoch", "loss_itc", "loss_rtc", "loss_align"]]
    row = read_csv(tmp_path / "validation_metrics.csv")[0]
    names = ["group_recall_at1", "group_recall_at2", "group_recall_at3", "recall_at1", "recall_at5", "recall_at10"]
    names += ["recall_at50", "mean(R@5+R_s@1)", "arithmetic_mean", "harmonic_mean", "geometric_mean"]
    assert list(row) == ["epoch", *names]
    assert best.metrics == {name: float(row[name]) for name in names}


def test_validation_frequency(parts, config, tmp_path):
    config = dataclasses.replace(config, num_epochs=3, validation_frequency=2)
    model, train_set, make_samples, validation = parts
    engine.fit(model, train_set, make_samples, validation, config, CPU, tmp_path)
    assert [row["epoch"] for row in read_csv(tmp_path / "train_metrics.csv")] == ["0", "1", "2"]
    assert [row["epoch"] for row in read_csv(tmp_path / "validation_metrics.csv")] == ["0", "2"]


def test_the_first_of_equal_epochs_is_the_best():
    best = engine.Best("m")
    assert [best.update(epoch, {"m": value}) for epoch, value in enumerate([1.0, 3.0, 3.0, 2.0])] == [
        True,
        True,
        False,
        False,
    ]
    assert (best.epoch, best.metrics) == (1, {"m": 3.0})


@pytest.mark.parametrize("value", [0.0, -0.01])
def test_a_temperature_at_zero_stops_the_training(parts, config, tmp_path, value):
    model, train_set, make_samples, validation = parts
    with torch.no_grad():
        model.temp.fill_(value)
    with pytest.raises(InputError, match=r"temperature|NaN"):
        engine.fit(model, train_set, make_samples, validation, config, CPU, tmp_path)
    assert not (tmp_path / "saved_models").exists()


def test_a_loss_that_is_no_number_stops_the_training(parts, config, tmp_path):
    model, train_set, make_samples, validation = parts
    with torch.no_grad():
        model.vision_proj.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"loss_itc.*epoch 0, step 0"):
        engine.fit(model, train_set, make_samples, validation, config, CPU, tmp_path)


def test_a_batch_larger_than_the_data_is_refused(parts, config):
    with pytest.raises(InputError, match="41 is more than the 40"):
        engine.make_train_loader(parts[1], dataclasses.replace(config, batch_size=41), CPU.device, ALONE)


def test_the_loader_drops_the_incomplete_batch(parts, config):
    loader = engine.make_train_loader(parts[1], dataclasses.replace(config, batch_size=12), CPU.device, ALONE)
    assert [len(batch[2]) for batch in loader] == [12, 12, 12]
    assert loader.collate_fn is collate_fn


def test_devices_and_precisions(monkeypatch):
    assert choose_runtime("cpu", "auto") == CPU
    for arguments, part in ((("cpu", "fp16"), "CUDA"), (("toaster", "auto"), "toaster"), (("cpu", "fp8"), "fp8")):
        with pytest.raises(InputError, match=part):
            choose_runtime(*arguments)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="sees 0 CUDA"):
            choose_runtime("cuda")


def test_evaluation_is_float32_unless_a_precision_is_given(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    auto, given = (choose_runtime("cuda", precision) for precision in ("auto", "bf16"))
    assert (auto.dtype, auto.scoring) == (torch.bfloat16, torch.float32)
    assert (given.dtype, given.scoring) == (torch.bfloat16, torch.bfloat16)


def test_another_precision_does_not_go_on(config):
    """`auto` can be another one on another GPU, whose gradient scaler has no state, or should have none."""
    model = torch.nn.Linear(2, 2)
    runtimes = [Runtime(CPU.device, dtype) for dtype in (torch.bfloat16, torch.float32)]
    saved, other = (engine.Optimization(model, config, 3, runtime) for runtime in runtimes)
    with pytest.raises(InputError, match="computes in bf16, and here --precision is fp32: go on with --precision bf16"):
        other.load_state_dict(saved.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region_objective": "query"}, "--region-objective has no effect without --use-region-loss"),
        ({"max_regions": 9}, "--max-regions has no effect without --use-region-loss"),
        ({"cache_precision": "fp32"}, "--cache-precision has no effect without --feature-cache"),
        ({"cache_device": "cuda"}, "--cache-device has no effect without --feature-cache"),
    ],
)
def test_a_flag_whose_switch_is_off_is_an_error(settings, message):
    with pytest.raises(InputError, match=message):
        TrainConfig("CIRR", **settings)


@pytest.mark.parametrize("field", ["num_epochs", "batch_size", "validation_frequency", "learning_rate", "memory_mib"])
def test_settings_that_cannot_be(field):
    with pytest.raises(InputError, match=field.replace("_", "-")):
        TrainConfig("CIRR", **{field: 0})


def test_datasets_have_presets():
    assert find_preset("CiRr") is PRESETS["cirr"]
    with pytest.raises(InputError, match="'imagenet'"):
        find_preset("imagenet")
    assert TrainConfig("CIRR").loss_weights() == {"loss_itc": 1.0, "loss_rtc": 0.4, "loss_align": 0.4}


def test_a_validation_without_numbers_names_the_epoch(parts, config, tmp_path, monkeypatch):
    """Weights are finite, as those of fp16 can be whose products are not."""
    model, train_set, make_samples, validation = parts
    original = model.extract_target_features
    monkeypatch.setattr(model, "extract_target_features", lambda images: (original(images)[0] * torch.nan, images))
    monkeypatch.setattr(model, "extract_query_features", lambda embeds, text: torch.ones(len(text), 16))
    with pytest.raises(InputError, match=r"^validation of epoch 0: NaN in the target features.*--precision fp32"):
        engine.fit(model, train_set, make_samples, validation, config, CPU, tmp_path)
