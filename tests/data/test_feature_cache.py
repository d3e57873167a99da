"""The feature cache: the same numbers as without it, no image opened, and nothing stale or damaged ever used."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import blip_fine_tune_2
import blip_validate
import cirr_test_submission
from data_utils import CIRRDataset, collate_fn
from lavis.models import load_model
from sprc.core.errors import InputError
from sprc.data import cache_files, feature_cache_build
from sprc.data.cache_files import unfinished_rows
from sprc.data.cached_rows import CachedRows
from sprc.data.feature_cache import FeatureCache
from sprc.data.feature_cache_build import CacheBuild, cache_key, use_feature_cache
from sprc.data.preprocess import squarepad_transform, targetpad_transform
from sprc.data.vit_fingerprint import frozen_fingerprint
from sprc.training.config import TrainConfig
from sprc.training.samples import SampleMaker

CPU = torch.device("cpu")
PREPROCESS = targetpad_transform(1.25, 56)


@pytest.fixture
def model(small_yaml):
    torch.manual_seed(0)
    return load_model("blip2_cir_align_prompt", small_yaml, is_eval=True, use_region_loss=True)


def open_train(demo, boxes=True):
    box_file = demo / "boxes" / "cirr_boxes_train.json" if boxes else None
    return CIRRDataset("train", "relative", PREPROCESS, box_file, demo)


def config(folder, **changes) -> TrainConfig:
    return TrainConfig(dataset="CIRR", feature_cache=str(folder), num_workers=0, **changes)


def cached(demo, model, folder, **changes) -> CIRRDataset:
    dataset = open_train(demo)
    use_feature_cache(config(folder, **changes), model, CPU, dataset)
    return dataset


def samples_of(dataset) -> dict:
    make_samples = SampleMaker(list, str, dataset, CPU)
    return make_samples(collate_fn([dataset.training[i] for i in range(8)]))


def losses_and_gradients(model, samples) -> tuple[dict, dict]:
    model.zero_grad(set_to_none=True)
    losses = model(samples)
    sum(losses.values()).backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_a_float32_cache_gives_the_same_bits(demo, model, tmp_path):
    plain = losses_and_gradients(model, samples_of(open_train(demo)))
    found = losses_and_gradients(model, samples_of(cached(demo, model, tmp_path, cache_precision="fp32")))
    assert all(torch.equal(plain[0][name], found[0][name]) for name in plain[0])
    assert plain[1].keys() == found[1].keys()
    assert all(torch.equal(plain[1][name], found[1][name]) for name in plain[1])


def test_a_float16_cache_is_within_its_rounding(demo, model, tmp_path):
    plain = losses_and_gradients(model, samples_of(open_train(demo)))
    found = losses_and_gradients(model, samples_of(cached(demo, model, tmp_path)))
    differences = {name: abs(plain[0][name] - found[0][name]).item() for name in plain[0]}
    print("fp16 cache:", differences)
    assert max(differences.values()) < 5e-3
    for name, gradient in plain[1].items():
        assert (gradient - found[1][name]).norm() <= 2e-2 * gradient.norm() + 1e-6, name


def test_a_table_gives_what_the_disk_gives(demo, model, tmp_path):
    dataset = cached(demo, model, tmp_path)
    samples = samples_of(dataset)
    dataset.features = FeatureCache(dataset.features.folder, _key(dataset, model), CPU)
    assert dataset.load_image(dataset.names[3]) == CachedRows(torch.tensor(3))
    from_table = samples_of(dataset)
    assert torch.equal(samples["image"].tokens, from_table["image"].tokens)
    assert torch.equal(samples["target"].tokens, from_table["target"].tokens)


def _key(dataset, model, precision="fp16"):
    return cache_key(dataset, model, frozen_fingerprint(model), precision)


def test_a_worker_that_is_not_forked_maps_the_file_itself(demo, model, tmp_path):
    """As Python 3.14 starts processes: what it is sent holds none of the features."""
    dataset = cached(demo, model, tmp_path)
    features = dataset.features
    table = FeatureCache(features.folder, features.key, CPU)
    sent = pickle.dumps(features)
    assert len(sent) < features.features.nbytes / 10
    assert torch.equal(pickle.loads(sent)[3].tokens, features[3].tokens)
    assert pickle.loads(pickle.dumps(table))[3] == CachedRows(torch.tensor(3))


def test_no_image_is_opened_once_it_is_there(demo, model, tmp_path, monkeypatch):
    cached(demo, model, tmp_path)

    def refuse(*arguments, **options):
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", refuse)
    dataset = cached(demo, model, tmp_path)
    samples = samples_of(dataset)
    assert samples["image"].tokens.shape == (8, 17, 32)
    assert sum(map(len, samples["region_boxes"])) > 0
    monkeypatch.undo()
    plain = samples_of(open_train(demo))
    assert all((a == b).all() for a, b in zip(plain["region_boxes"], samples["region_boxes"], strict=True))


def flags(demo, small_yaml, *more) -> list[str]:
    settings = {"--data-path": demo, "--backbone": small_yaml, "--num-workers": 0, "--device": "cpu"}
    return [str(word) for pair in settings.items() for word in pair] + [str(word) for word in more]


def test_every_script_reads_it(demo, small_yaml, tmp_path):
    train = ["--dataset", "CIRR", "--batch-size", "8", "--num-epochs", "2", "--learning-rate", "1e-3", "--save-best"]
    cache = ["--feature-cache", str(tmp_path / "cache"), "--cache-precision", "fp32"]
    for name, more in (("plain", []), ("cached", cache)):
        blip_fine_tune_2.main([*train, *flags(demo, small_yaml, "--output-folder", tmp_path / name, *more)])
    plain, found = (next((tmp_path / name).iterdir()) for name in ("plain", "cached"))
    for name in ("train_metrics.csv", "validation_metrics.csv"):
        assert (plain / name).read_bytes() == (found / name).read_bytes()
    best = found / "saved_models" / "tuned_clip_arithmetic.pt"
    evaluation = flags(demo, small_yaml, "--model-path", best)
    assert blip_validate.main(["--dataset", "CIRR", *evaluation]) == blip_validate.main(
        ["--dataset", "CIRR", *evaluation, *cache]
    )
    one, two = (
        cirr_test_submission.main([*evaluation, *more, "--output-folder", str(tmp_path / name)])
        for name, more in (("s1", []), ("s2", cache))
    )
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert len(list((tmp_path / "cache").iterdir())) == 3  # train, val, test1


def test_an_interrupted_build_goes_on(demo, model, tmp_path, monkeypatch):
    whole = cached(demo, model, tmp_path / "whole")
    monkeypatch.setattr(feature_cache_build, "BATCH", 4)
    monkeypatch.setattr(feature_cache_build, "BATCHES_PER_FLUSH", 1)
    dataset, original, calls = open_train(demo), model.encode_frozen, []

    def breaks(images):
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(images)

    monkeypatch.setattr(model, "encode_frozen", breaks)
    key, folder = _key(dataset, model), tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        CacheBuild(folder, key, dataset, model, CPU, 0).write_rows(unfinished_rows(folder, key))
    assert np.load(folder / "done.npy").sum() == 12
    with pytest.raises(InputError, match="not complete"):
        FeatureCache(folder, key)
    CacheBuild(folder, key, dataset, model, CPU, 0).write_rows(unfinished_rows(folder, key))
    assert sum(calls[4:]) == len(dataset.names) - 12
    found = FeatureCache(folder, key)
    assert all(torch.equal(found[i].tokens, whole.features[i].tokens) for i in range(len(dataset.names)))


def test_whatever_the_features_depend_on_makes_another_cache(demo, demo_copy, model, small_yaml, tmp_path):
    dataset = open_train(demo)
    keys = {json.dumps(_key(dataset, model, precision)) for precision in ("fp16", "fp32")}
    dataset.preprocess = squarepad_transform(56)
    keys.add(json.dumps(_key(dataset, model)))
    dataset = open_train(demo_copy)
    assert json.dumps(_key(dataset, model)) in keys  # the same files elsewhere
    path = demo_copy / dataset.image_paths[dataset.names[0]]
    os.utime(path, (1, 1))
    keys.add(json.dumps(_key(dataset, model)))
    with torch.no_grad():
        next(model.visual_encoder.parameters()).add_(1)
    keys.add(json.dumps(_key(dataset, model)))
    assert len(keys) == 5


def test_a_damaged_cache_is_refused(demo, model, tmp_path):
    dataset = cached(demo, model, tmp_path)
    folder = dataset.features.folder
    with (folder / "features.bin").open("r+b") as file:
        file.seek(17 * 32 * 2 * 5 + 11)
        file.write(b"\xff")
    dataset = cached(demo, model, tmp_path)
    assert dataset.load_image(dataset.names[4]).tokens.shape == (17, 32)
    with pytest.raises(InputError, match="damaged at image 5: remove that folder"):
        dataset.load_image(dataset.names[5])
    with pytest.raises(InputError, match="damaged at image 5"):
        FeatureCache(folder, _key(dataset, model), CPU)
    with (folder / "features.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(InputError, match="bytes that it should"):
        cached(demo, model, tmp_path)


def test_a_value_beyond_fp16_is_an_error(demo, model, tmp_path, monkeypatch):
    original = model.encode_frozen
    monkeypatch.setattr(model, "encode_frozen", lambda images: original(images) * 1e6)
    with pytest.raises(InputError, match=r"features of image 'train-.*beyond fp16: use fp32"):
        cached(demo, model, tmp_path)


def test_a_table_on_a_gpu_needs_one(demo, model, tmp_path):
    with pytest.raises(InputError, match="this run is on cpu"):
        cached(demo, model, tmp_path, cache_device="cuda")


def test_the_fingerprint_tells_vits_apart(model):
    first = frozen_fingerprint(model)
    assert frozen_fingerprint(model) == first
    with torch.no_grad():
        model.visual_encoder.blocks[0].mlp.fc1.weight.mul_(1.0001)
    assert frozen_fingerprint(model) != first


def test_a_full_disk_is_said_before_anything_is_made(demo, model, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(cache_files.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(InputError, match=r"needs 0\.0 GB"):
        cached(demo, model, tmp_path)
    assert not list(tmp_path.rglob("features.bin"))
