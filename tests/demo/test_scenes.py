"""Scenes, their captions and their pictures: true captions, exact boxes."""

import random

import numpy as np
import pytest

from lavis.models.tokenizer import build_tokenizer
from sprc.demo import painting, scenes
from sprc.demo.scenes import COLOURS, DIFFICULTIES


def groups_of(difficulty: str, count: int, seed: int = 0) -> list:
    groups = scenes.distinct_groups(random.Random(seed), DIFFICULTIES[difficulty])
    return [next(groups) for _ in range(count)]


def painted_box(pixels: np.ndarray, item) -> list[float]:
    """The box of an object's colour within its cell, searched pixel by pixel, normalised."""
    height, width, _ = pixels.shape
    row, column = divmod(scenes.PLACES.index(item.place), 3)
    top, left = row * height // 3, column * width // 3
    cell = pixels[top : -(-(row + 1) * height // 3), left : -(-(column + 1) * width // 3)]
    rows, columns = np.nonzero((cell == COLOURS[item.colour]).all(axis=2))
    pixel_box = (left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1)
    return [edge / side for edge, side in zip(pixel_box, (width, height, width, height), strict=True)]


@pytest.mark.parametrize("difficulty", ["easy", "normal", "clear", "cluttered"])
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


def test_images_of_the_demo_run_are_square_and_the_others_of_all_shapes():
    sizes = {
        difficulty: [painting.random_size(random.Random(seed), DIFFICULTIES[difficulty].aspect) for seed in range(60)]
        for difficulty in ("clear", "normal")
    }
    assert all(width == height for width, height in sizes["clear"])
    assert all(160 <= max(size) <= 320 and max(size) <= 2 * min(size) + 1 for size in sizes["normal"])
    assert {width > height for width, height in sizes["normal"]} == {True, False}
    assert max(max(size) / min(size) for size in sizes["normal"]) > 1.8


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


def test_the_vocabulary_covers_every_caption():
    tokenizer, rng = build_tokenizer("tiny_vocab.txt", 1024), random.Random(0)
    for difficulty in DIFFICULTIES:
        for group in groups_of(difficulty, 60):
            for reference, target in scenes.group_triplets(group):
                caption = scenes.caption_of(group.variants[reference], group.variants[target], rng)
                tokens = tokenizer.tokenize(caption)
                assert "[UNK]" not in tokens
                assert not [token for token in tokens if token.startswith("##")], caption
