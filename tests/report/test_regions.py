"""The regions of a photograph are found by its path, its path without a suffix, or its stem."""

import pytest

from lavis.datasets.region_boxes import Region, save_boxes
from sprc.core.errors import InputError
from sprc.report.regions import PhotoRegions

BOX, OTHER = Region((0.1, 0.1, 0.5, 0.5)), Region((0.2, 0.2, 0.6, 0.6))


def regions(tmp_path, boxes: dict, names: list[str]) -> PhotoRegions:
    save_boxes(tmp_path / "boxes.json", boxes)
    return PhotoRegions(tmp_path / "boxes.json", names)


@pytest.mark.parametrize("key", ["sub/a.png", "sub/a", "a"])
def test_a_name_is_found(tmp_path, key):
    found = regions(tmp_path, {key: [BOX]}, ["sub/a.png", "b.png"])
    assert found.of("sub/a.png") == (BOX,)
    assert found.of("b.png") == ()


def test_the_longest_name_wins(tmp_path):
    found = regions(tmp_path, {"a": [BOX], "sub/a.png": [OTHER]}, ["sub/a.png"])
    assert found.of("sub/a.png") == (OTHER,)


def test_a_stem_that_two_photographs_share_is_of_neither(tmp_path):
    found = regions(tmp_path, {"a": [BOX], "b": [BOX]}, ["x/a.png", "y/a.jpg", "b.png"])
    assert found.of("x/a.png") == found.of("y/a.jpg") == ()


def test_boxes_of_other_photographs_are_refused(tmp_path):
    with pytest.raises(InputError, match="has boxes of none of the photographs"):
        regions(tmp_path, {"c": [BOX]}, ["a.png"])


def test_without_a_file_there_are_none():
    assert PhotoRegions(None, ["a.png"]).of("a.png") == ()
