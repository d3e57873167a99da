"""The loop: order, seeds, optimizer, what is saved, what stops it; scores against the obvious slow way."""

import contextlib
import csv
import dataclasses

import pytest
import torch

from data_utils import targetpad_transform
from lavis.models import load_model_and_preprocess
from sprc.benchmarks import find_benchmark
from sprc.benchmarks.cirr import CIRR
from sprc.core.errors import InputError
from sprc.core.process_group import ALONE, World
from sprc.core.runtime import Runtime, choose_runtime
from sprc.data.batches import collate_fn
from sprc.retrieval.evaluation import Evaluator
from sprc.training.config import TrainConfig
from sprc.training.gradients import total_loss
from sprc.training.optimization import Optimization
from sprc.training.run_state import Best
from sprc.training.samples import SampleMaker
from sprc.training.sampling import EpochSampler, make_train_loader
from sprc.training.trainer import Trainer, TrainingData

CPU = Runtime(torch.device("cpu"), torch.float32)


@pytest.fixture
def config(demo) -> TrainConfig:
    return TrainConfig(dataset="CIRR", data_path=demo, batch_size=8, num_workers=0, num_epochs=2, learning_rate=1e-3)


@pytest.fixture
def parts(demo, small_yaml):
    """The model, and the data to train and validate it with."""
    torch.manual_seed(0)
    model, _, texts = load_model_and_preprocess("blip2_cir_align_prompt", small_yaml)
    preprocess = targetpad_transform(dim=56)
    triplets = CIRR(demo).training_triplets(preprocess)
    make_samples = SampleMaker(list, texts["train"], triplets.images, CPU.device)
    return model, TrainingData(triplets, make_samples, CIRR(demo).validation(preprocess), texts["eval"])


def evaluator_of(model, data, config, runtime=CPU) -> Evaluator:
    return Evaluator(model, data.process_caption, config.scoring, runtime)


def read_csv(path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(50, 1, seed, ALONE)
        sampler.epoch = epoch
        return list(sampler)

    assert sorted(order(0, 0)) == list(range(50))
    torch.manual_seed(5)
    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize(("ranks", "batch"), [(1, 8), (2, 4), (3, 5)])
def test_the_ranks_share_the_order_step_by_step(ranks, batch):
    samplers = [EpochSampler(50, batch, 7, World(rank, ranks)) for rank in range(ranks)]
    shares = [list(sampler) for sampler in samplers]
    whole = list(EpochSampler(50, ranks * batch, 7, ALONE))
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
    found = Optimization(model, config, steps_per_epoch=3, runtime=CPU)
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
    model, data = parts
    (task,) = data.validation.tasks.values()
    config = dataclasses.replace(config, batch_size=5, memory_mib=0.01)
    found = evaluator_of(model, data, config).score(task)
    gallery = torch.stack([task.gallery[i][1] for i in range(len(task.gallery))])
    features, embeds = model.extract_target_features(gallery)
    for query, (name, sentence) in enumerate(zip(task.reference_names, task.sentences, strict=True)):
        row = task.gallery.names.index(name)
        expected = model.inference(embeds[row : row + 1], features, [data.process_caption(sentence)])
        torch.testing.assert_close(found[query], expected[0], atol=1e-5, rtol=0)
    assert not model.training


def test_scores_are_float32_while_training_is_not(parts, config):
    """As upstream, whose Q-Former evaluates without autocast; another precision only where it is asked for."""
    model, data = parts
    (task,) = data.validation.tasks.values()
    mixed, half = (Runtime(CPU.device, torch.bfloat16, scoring) for scoring in (torch.float32, torch.bfloat16))
    expected = evaluator_of(model, data, config).score(task)
    assert torch.equal(evaluator_of(model, data, config, mixed).score(task), expected)
    assert not torch.equal(evaluator_of(model, data, config, half).score(task), expected)


def test_a_micro_batch_bounds_validation_as_well(parts, config, monkeypatch):
    model, data = parts
    (task,) = data.validation.tasks.values()
    sizes, encode = [], model.extract_target_features
    monkeypatch.setattr(model, "extract_target_features", lambda images: sizes.append(len(images)) or encode(images))
    evaluator_of(model, data, dataclasses.replace(config, batch_size=64, micro_batch=3)).score(task)
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
    best = Trainer(*parts, config, CPU, tmp_path).fit()
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
    Trainer(*parts, config, CPU, tmp_path).fit()
    assert [row["epoch"] for row in read_csv(tmp_path / "train_metrics.csv")] == ["0", "1", "2"]
    assert [row["epoch"] for row in read_csv(tmp_path / "validation_metrics.csv")] == ["0", "2"]


def test_the_first_of_equal_epochs_is_the_best():
    best = Best("m")
    assert [best.update(epoch, {"m": value}) for epoch, value in enumerate([1.0, 3.0, 3.0, 2.0])] == [
        True,
        True,
        False,
        False,
    ]
    assert (best.epoch, best.metrics) == (1, {"m": 3.0})


@pytest.mark.parametrize("value", [0.0, -0.01])
def test_a_temperature_at_zero_stops_the_training(parts, config, tmp_path, value):
    model, _ = parts
    with torch.no_grad():
        model.temp.fill_(value)
    with pytest.raises(InputError, match=r"temperature|NaN"):
        Trainer(*parts, config, CPU, tmp_path).fit()
    assert not (tmp_path / "saved_models").exists()


def test_a_loss_that_is_no_number_stops_the_training(parts, config, tmp_path):
    model, _ = parts
    with torch.no_grad():
        model.vision_proj.weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"loss_itc.*epoch 0, step 0"):
        Trainer(*parts, config, CPU, tmp_path).fit()


def test_a_batch_larger_than_the_data_is_refused(parts, config):
    with pytest.raises(InputError, match="41 is more than the 40"):
        make_train_loader(parts[1].triplets, dataclasses.replace(config, batch_size=41), CPU.device)


def test_the_loader_drops_the_incomplete_batch(parts, config):
    loader = make_train_loader(parts[1].triplets, dataclasses.replace(config, batch_size=12), CPU.device)
    assert [len(batch["caption"]) for batch in loader] == [12, 12, 12]
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
    saved, other = (Optimization(model, config, 3, runtime) for runtime in runtimes)
    with pytest.raises(InputError, match="in bf16, and here `precision` is fp32: continue with `precision` bf16"):
        other.load_state_dict(saved.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region_objective": "query"}, "`region_objective` has no effect without `use_region_loss`"),
        ({"max_regions": 9}, "`max_regions` has no effect without `box_file`"),
        ({"cache_precision": "fp32"}, "`cache_precision` has no effect without `feature_cache`"),
        ({"cache_device": "cuda"}, "`cache_device` has no effect without `feature_cache`"),
    ],
)
def test_a_flag_whose_switch_is_off_is_an_error(settings, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(dataset="CIRR", **settings)


@pytest.mark.parametrize("field", ["num_epochs", "batch_size", "validation_frequency", "learning_rate", "memory_mib"])
def test_settings_that_cannot_be(field):
    with pytest.raises(InputError, match=f"`{field}` must be above 0"):
        TrainConfig(dataset="CIRR", **{field: 0})


def test_datasets_have_presets():
    assert find_benchmark("CiRr") is CIRR
    with pytest.raises(InputError, match="'imagenet'"):
        find_benchmark("imagenet")
    assert TrainConfig(dataset="CIRR").loss_weights() == {"loss_itc": 1.0, "loss_rtc": 0.4, "loss_align": 0.4}


def test_a_validation_without_numbers_names_the_epoch(parts, config, tmp_path, monkeypatch):
    """Weights are finite, as those of fp16 can be whose products are not."""
    model, _ = parts
    original = model.extract_target_features
    monkeypatch.setattr(model, "extract_target_features", lambda images: (original(images)[0] * torch.nan, images))
    monkeypatch.setattr(model, "extract_query_features", lambda embeds, text: torch.ones(len(text), 16))
    with pytest.raises(InputError, match=r"^validation of epoch 0: NaN in the target features.*`precision` fp32"):
        Trainer(*parts, config, CPU, tmp_path).fit()
