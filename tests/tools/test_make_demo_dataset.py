"""The demo dataset: CIRR's layout, the same bytes every time, exact boxes, true captions."""

import json
import random

import make_demo_dataset as make_demo_dataset_script
import numpy as np
import pytest
from make_demo_dataset import main
from PIL import Image
from training_flags import at_once

from lavis.models.tokenizer import build_tokenizer
from sprc.core.errors import InputError
from sprc.demo import painting, scenes
from sprc.demo.dataset import DemoSettings, make_demo_dataset
from sprc.demo.scenes import COLOURS, DIFFICULTIES, WORDINGS

TINY = DemoSettings(12, 20, val_images=6, val_triplets=5, test_images=6, test_triplets=4)


def read(folder, name):
    return json.loads((folder / name).read_text())


def groups_of(difficulty: str, count: int, seed: int = 0) -> list:
    groups = scenes.distinct_groups(random.Random(seed), DIFFICULTIES[difficulty])
    return [next(groups) for _ in range(count)]


@pytest.mark.parametrize("attempt", range(3))
def test_two_that_make_it_at_once(tmp_path, attempt):
    flags = ["--images", "60", "--triplets", "30", "--val-images", "6", "--val-triplets", "6", "--test-images", "6"]
    said = at_once(make_demo_dataset_script.__file__, [*flags, "--test-triplets", "6", "--output", str(tmp_path / "d")])
    assert sum("demo dataset is there" in out for out in said) == 1
    assert sum("demo dataset in" in out for out in said) == 1
    assert not list(tmp_path.rglob("*.partial"))


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


def test_a_finished_dataset_is_used_again_and_never_mixed(tmp_path, capsys):
    main(["--output", str(tmp_path), "--images", "6", "--triplets", "3", "--val-images", "6", "--val-triplets", "2"])
    main(["--output", str(tmp_path), "--images", "6", "--triplets", "3", "--val-images", "6", "--val-triplets", "2"])
    assert "is there" in capsys.readouterr().out
    with pytest.raises(InputError, match="other settings"):
        make_demo_dataset(tmp_path, TINY)
    (tmp_path / "real" / "cirr").mkdir(parents=True)
    with pytest.raises(InputError, match="no demo dataset"):
        make_demo_dataset(tmp_path / "real", TINY)


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


def painted_box(pixels: np.ndarray, item) -> list[float]:
    """The box of an object's colour within its cell, searched pixel by pixel, normalised."""
    height, width, _ = pixels.shape
    row, column = divmod(scenes.PLACES.index(item.place), 3)
    top, left = row * height // 3, column * width // 3
    cell = pixels[top : -(-(row + 1) * height // 3), left : -(-(column + 1) * width // 3)]
    rows, columns = np.nonzero((cell == COLOURS[item.colour]).all(axis=2))
    pixel_box = (left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1)
    return [edge / side for edge, side in zip(pixel_box, (width, height, width, height), strict=True)]


@pytest.mark.parametrize("difficulty", ["easy", "normal", "cluttered"])
def test_boxes_are_exact(difficulty):
    for number, group in enumerate(groups_of(difficulty, 10)):
        scene = group.scene(number % 6)
        image, boxes = painting.render(scene, random.Random(number), DIFFICULTIES[difficulty])
        found = [painted_box(np.asarray(image), item) for item in scene]
        assert len(boxes) == len(scene)
        one_pixel = 1.01 / min(image.size)
        np.testing.assert_allclose(sorted(boxes), sorted(found), atol=one_pixel)
        areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
        assert areas == pytest.approx(sorted(areas, reverse=True))


def test_clutter_is_pale_and_another_in_every_image():
    images = [painting.render((), random.Random(seed), DIFFICULTIES["cluttered"])[0] for seed in range(8)]
    colours = [{colour for _, colour in image.getcolors()} for image in images]
    assert all(len(found) > 3 for found in colours)
    assert min(min(colour) for found in colours for colour in found) >= painting.PALE[0]
    assert not set(COLOURS.values()) & set().union(*colours)
    assert all(len(found & others) <= 1 for i, found in enumerate(colours) for others in colours[:i])


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_members_differ_by_one_object_and_scenes_are_distinct(difficulty):
    groups = groups_of(difficulty, 40)
    seen = [frozenset(group.scene(member)) for group in groups for member in range(6)]
    assert len(set(seen)) == len(seen)
    for group in groups:
        for a in range(6):
            for b in range(a):
                assert len(set(group.scene(a)) ^ set(group.scene(b))) <= 2
            words = [item.words for item in group.scene(a)]
            places = [item.place for item in group.scene(a)]
            assert len(set(words)) == len(words) and len(set(places)) == len(places)


def test_a_caption_determines_its_target_in_the_group():
    rng = random.Random(0)
    for group in groups_of("normal", 40):
        for reference, target in scenes.group_triplets(group):
            old, new = group.variants[reference], group.variants[target]
            caption = scenes.caption_of(old, new, rng)
            said = (new.colour, new.shape, new.size, new.place) if new else ()
            kind = scenes.change_between(old, new)
            if kind == "add":
                assert all(word in caption for word in said)
            elif kind != "remove":
                changed = {"recolour": new.colour, "reshape": new.shape, "move": new.place}.get(kind, "er ")
                assert changed in caption + " "
            same = [v for v in group.variants if v != old and scenes.change_between(old, v) == kind and v == new]
            assert len(same) == 1


def test_all_wordings_and_changes_occur(demo):
    captions = [entry["caption"] for entry in read(demo, "cirr/captions/cap.rc2.train.json")]
    assert len(set(captions)) > len(captions) * 0.8
    assert all(len(set(wordings)) >= 5 for wordings in WORDINGS.values())


def test_the_vocabulary_covers_every_caption():
    tokenizer, rng = build_tokenizer("tiny_vocab.txt", 1024), random.Random(0)
    for difficulty in DIFFICULTIES:
        for group in groups_of(difficulty, 60):
            for reference, target in scenes.group_triplets(group):
                caption = scenes.caption_of(group.variants[reference], group.variants[target], rng)
                tokens = tokenizer.tokenize(caption)
                assert "[UNK]" not in tokens
                assert not [token for token in tokens if token.startswith("##")], caption
