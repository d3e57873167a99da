"""The demo dataset: CIRR's layout, the same bytes every time."""

import json

import pytest
from PIL import Image

from sprc.core.errors import InputError
from sprc.demo.dataset import DemoSettings, make_demo_dataset
from sprc.demo.scenes import WORDINGS

TINY = DemoSettings(12, 20, val_images=6, val_triplets=5, test_images=6, test_triplets=4)


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("content", ["{", "[]", '{"images": 1, "images": 2}', ""])
def test_a_damaged_settings_file_is_named(tmp_path, content):
    (tmp_path / "demo.json").write_text(content)
    with pytest.raises(InputError, match=r"demo\.json.*remove"):
        make_demo_dataset(tmp_path, TINY)


def test_a_full_disk_is_one_line(small_disk):
    with pytest.raises(InputError, match=r"\.png cannot be written \(No space left on device\): free some space"):
        make_demo_dataset(small_disk("64k"), TINY)


def test_layout_is_cirrs(demo):
    for split, folder, pairs in (("train", "train", 40), ("val", "dev", 30), ("test1", "test1", 20)):
        entries = read(demo, f"cirr/captions/cap.rc2.{split}.json")
        places = read(demo, f"cirr/image_splits/split.rc2.{split}.json")
        keys = {"pairid", "reference", "caption", "img_set"} | (
            {"target_hard", "target_soft"} if split != "test1" else set()
        )
        ranks = {"reference_rank"} | ({"target_rank"} if split != "test1" else set())
        assert len(entries) == pairs
        for entry in entries:
            members = entry["img_set"]["members"]
            assert set(entry) == keys
            assert set(entry["img_set"]) == {"id", "members"} | ranks
            assert len(set(members)) == 6 and set(members) <= set(places)
            assert members[entry["img_set"]["reference_rank"]] == entry["reference"]
            if split != "test1":
                assert members[entry["img_set"]["target_rank"]] == entry["target_hard"] != entry["reference"]
        for name, place in places.items():
            assert place.startswith(f"./{folder}/") and place.endswith(f"/{name}.png")
            with Image.open(demo / place) as image:
                assert image.mode == "RGB" and 160 <= max(image.size) <= 320
    ids = [
        e["pairid"] for split in ("train", "val", "test1") for e in read(demo, f"cirr/captions/cap.rc2.{split}.json")
    ]
    assert len(set(ids)) == len(ids)


def test_two_runs_write_the_same_bytes(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        assert make_demo_dataset(folder, TINY)
    files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders]
    assert files[0] == files[1]
    assert len(files[0]) == 24 + 9 + 1


def test_more_triplets_than_pairs_is_an_error(tmp_path):
    with pytest.raises(InputError, match="ask for fewer"):
        make_demo_dataset(tmp_path, DemoSettings(6, 1000))


def test_a_pair_may_have_several_captions_all_different(tmp_path):
    make_demo_dataset(
        tmp_path / "few", DemoSettings(6, 20, val_images=6, val_triplets=10, test_images=6, test_triplets=4)
    )
    entries = read(tmp_path / "few", "cirr/captions/cap.rc2.val.json")
    pairs = {(entry["reference"], entry["target_hard"]) for entry in entries}
    assert len(pairs) == len(entries)
    make_demo_dataset(
        tmp_path / "many", DemoSettings(6, 20, val_images=6, val_triplets=50, test_images=6, test_triplets=4)
    )
    more = read(tmp_path / "many", "cirr/captions/cap.rc2.val.json")
    assert [{**entry, "pairid": 0} for entry in more[:10]] == [{**entry, "pairid": 0} for entry in entries]
    captions = {(entry["reference"], entry["target_hard"], entry["caption"]) for entry in more}
    assert len(captions) == 50 > len({caption[:2] for caption in captions})


def test_all_wordings_and_changes_occur(demo):
    captions = [entry["caption"] for entry in read(demo, "cirr/captions/cap.rc2.train.json")]
    assert len(set(captions)) > len(captions) * 0.8
    assert all(len(set(wordings)) >= 5 for wordings in WORDINGS.values())
