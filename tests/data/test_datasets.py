"""Preprocess pipelines against upstream's recorded pixels; the CIRR dataset, its tuples and its errors."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from data_utils import (
    CIRRDataset,
    build_preprocess,
    collate_fn,
    squarepad_transform,
    targetpad_transform,
)
from sprc.core.errors import InputError
from sprc.data.image_check import check_images
from sprc.data.preprocess import input_geometry

PREPROCESS = targetpad_transform(1.25, 56)


def tiled_image(number: int, width: int, height: int) -> Image.Image:
    """The image of the recorded recipe."""
    small = np.random.default_rng(100 + number).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    tile = np.ones((math.ceil(height / 8), math.ceil(width / 8), 1), np.uint8)
    return Image.fromarray(np.kron(small, tile)[:height, :width])


def test_preprocess_parity(recorded):
    cases = json.loads((recorded / "preprocess.json").read_text())["cases"]
    expected = load_file(recorded / "preprocess.safetensors")
    pipelines = {"targetpad1.25": targetpad_transform(), "squarepad": squarepad_transform()}
    assert len(cases) >= 10
    for case in cases:
        found = pipelines[case["transform"]](tiled_image(case["i"], *case["size_wh"]))
        assert found.shape == (3, 224, 224)
        assert torch.equal(found[:, ::7, ::7], expected[case["key"]]), case["key"]


@given(st.integers(1, 2000), st.integers(1, 2000), st.floats(1, 3), st.sampled_from([56, 224]))
def test_geometry_covers_the_input_frame(width, height, ratio, dim):
    geometry = input_geometry(width, height, ratio, dim)
    padded = [side + 2 * pad for side, pad in zip((width, height), geometry.padding, strict=True)]
    assert min(geometry.resized) == dim
    assert min(geometry.padding) == 0
    if max(width, height) < ratio * min(width, height):
        assert geometry.padding == (0, 0) or ratio <= 1
    elif min(padded) > 1:  # an image of one pixel's height cannot be padded evenly
        assert max(padded) / min(padded) <= max(ratio, 1) * (1 + 2 / (min(padded) - 1)) + 1e-9


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["RGB", "L", "P", "RGBA", "1", "CMYK", "I;16"]))
def test_any_image_becomes_an_input_frame(width, height, mode):
    out = PREPROCESS(Image.new(mode, (width, height)))
    assert out.shape == (3, 56, 56)
    assert out.dtype == torch.float32


def test_a_palette_image_is_padded_black():
    image = Image.new("P", (40, 10))
    image.putpalette([255, 255, 255] * 256)
    black = PREPROCESS(Image.new("RGB", (4, 4)))[:, 0, 0]
    assert torch.equal(PREPROCESS(image)[:, 0, 28], black)


def test_pipelines_are_picklable_and_named():
    assert pickle.loads(pickle.dumps(PREPROCESS)) == PREPROCESS
    assert build_preprocess("squarepad", 1.5, 56) == squarepad_transform(56)
    with pytest.raises(InputError, match="'other'"):
        build_preprocess("other")
    for ratio in (0.5, math.inf, math.nan):
        with pytest.raises(InputError, match=f"at least 1, not {ratio}"):
            targetpad_transform(ratio)


def test_tuples_of_every_split_and_mode(demo):
    entry = json.loads((demo / "cirr/captions/cap.rc2.train.json").read_text())[3]
    train = CIRRDataset("train", "relative", PREPROCESS, data_path=demo)
    reference, target, caption = train[3]
    assert len(train) == 40
    assert caption == entry["caption"]
    assert torch.equal(reference, train.load_image(entry["reference"]))
    assert torch.equal(target, train.load_image(entry["target_hard"]))

    val = CIRRDataset("val", "relative", PREPROCESS, data_path=demo)
    entry = json.loads((demo / "cirr/captions/cap.rc2.val.json").read_text())[0]
    assert val.triplets[0] == entry
    assert val[0] == (entry["reference"], entry["target_hard"], entry["caption"], entry["img_set"]["members"])
    test1 = CIRRDataset("test1", "relative", PREPROCESS, data_path=demo)
    entry = json.loads((demo / "cirr/captions/cap.rc2.test1.json").read_text())[0]
    assert test1[0] == (entry["pairid"], entry["reference"], entry["caption"], entry["img_set"]["members"])
    name, image = CIRRDataset("val", "classic", PREPROCESS, data_path=demo)[7]
    assert name == list(json.loads((demo / "cirr/image_splits/split.rc2.val.json").read_text()))[7]
    assert image.shape == (3, 56, 56)


def test_an_index_past_the_end_raises(demo):
    for mode in ("classic", "relative"):
        dataset = CIRRDataset("val", mode, PREPROCESS, data_path=demo)
        with pytest.raises(IndexError):
            dataset[len(dataset)]


def test_collate_stacks_images_and_lists_the_rest():
    images, names, groups = collate_fn(
        [(torch.zeros(3, 4, 4), "a", ["x", "y"]), (torch.ones(3, 4, 4), "b", ["z", "w"])]
    )
    assert images.shape == (2, 3, 4, 4)
    assert names == ["a", "b"]
    assert groups == [["x", "y"], ["z", "w"]]


def test_missing_images_are_named_before_anything_is_loaded(demo_copy):
    dataset = CIRRDataset("val", "classic", PREPROCESS, data_path=demo_copy)
    check_images(dataset)
    gone = dataset.names[5]
    (demo_copy / "dev" / f"{gone}.png").unlink()
    with pytest.raises(InputError, match=f"1 of 18 images.*{gone}"):
        check_images(dataset)
    with pytest.raises(InputError, match=gone):
        dataset.load_image(gone)


def test_a_broken_image_is_named(demo_copy):
    dataset = CIRRDataset("val", "classic", PREPROCESS, data_path=demo_copy)
    path = demo_copy / dataset.image_paths[dataset.names[2]]
    for content in (b"no image", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=dataset.names[2]):
            dataset[2]


def test_missing_places_are_named(tmp_path, demo_copy):
    with pytest.raises(InputError, match="`data_path`"):
        CIRRDataset("val", "classic", PREPROCESS, data_path=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"split\.rc2\.val\.json"):
        CIRRDataset("val", "classic", PREPROCESS, data_path=tmp_path)
    (demo_copy / "cirr/captions/cap.rc2.val.json").unlink()
    with pytest.raises(InputError, match=r"cap\.rc2\.val\.json"):
        CIRRDataset("val", "relative", PREPROCESS, data_path=demo_copy)
    with pytest.raises(InputError, match="'dev'"):
        CIRRDataset("dev", "classic", PREPROCESS, data_path=demo_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.pop("target_hard"), "lacks target_hard"),
        (lambda entry: entry.update(reference="nobody"), "'nobody'"),
        (lambda entry: entry.update(caption=7), "text as caption"),
        (lambda entry: entry["img_set"].update(members=["nobody"]), "'nobody'"),
    ],
)
def test_a_wrong_entry_is_named(demo_copy, change, message):
    path = demo_copy / "cirr/captions/cap.rc2.val.json"
    entries = json.loads(path.read_text())
    change(entries[4])
    path.write_text(json.dumps(entries))
    with pytest.raises(InputError, match=f"entry 4.*{message}"):
        CIRRDataset("val", "relative", PREPROCESS, data_path=demo_copy)


def test_a_training_does_not_read_the_groups(demo_copy):
    path = demo_copy / "cirr/captions/cap.rc2.train.json"
    entries = json.loads(path.read_text())
    entries[4]["img_set"]["members"] = ["an image of another split"]
    path.write_text(json.dumps(entries))
    assert len(CIRRDataset("train", "relative", PREPROCESS, data_path=demo_copy)) == len(entries)


@pytest.mark.parametrize("content", ["{", "[]", '{"a": "../outside.png"}', "{}"])
def test_a_wrong_image_list_is_named(demo_copy, content):
    (demo_copy / "cirr/image_splits/split.rc2.val.json").write_text(content)
    with pytest.raises(InputError, match=r"split\.rc2\.val\.json"):
        CIRRDataset("val", "classic", PREPROCESS, data_path=demo_copy)
