"""Scenes of products: cut-outs, exact boxes, sentences that leave one target, and the dataset that is made of them."""

import json
import random
import re
from pathlib import Path

import numpy as np
import product_scenes
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from product_dataset import OTHER, ProductSettings, make_product_dataset, write_model
from product_photos import ProductWorld, cut_out, outer_white, product_world, read_photos
from product_pictures import make_photos, product_picture
from product_scenes import LEAST_PRODUCTS, Product

from lavis.datasets.region_boxes import load_boxes
from lavis.models.model_config import load_config
from lavis.models.tokenizer import build_tokenizer
from lavis.processors import BlipCaptionProcessor
from sprc.core.errors import InputError
from sprc.demo.scenes import GROUP_SIZE, PLACES, RADII, group_triplets
from sprc.demo.worlds import World
from sprc.training.config import TrainConfig

NAMES = ["red apple", "green pear", "oat milk 2", "leek", "honeydew melon", "kiwi", "plum", "fig"]
TINY = ProductSettings(images=12, triplets=20, val_images=6, val_triplets=8, other_images=6, seed=3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return read_photos(make_photos(tmp_path_factory.mktemp("photos")))


@pytest.fixture(scope="module")
def dataset(photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("products")
    assert make_product_dataset(folder, photos, TINY)
    return folder


def read(folder: Path, name: str):
    return json.loads((folder / name).read_text())


# --- source pictures --------------------------------------------------------------------------------------------------


def test_a_cut_out_keeps_the_white_inside_the_product(tmp_path):
    product_picture((200, 10, 10)).save(tmp_path / "a.png")
    found = cut_out(tmp_path / "a.png")
    alpha = np.asarray(found.getchannel("A"))
    assert abs(found.width - 40) <= 2 and abs(found.height - 60) <= 2
    assert alpha[0, 0] == alpha[-1, -1] == 0
    middle = found.height // 2, found.width // 2
    assert alpha[middle] == 255 and found.getpixel(middle[::-1])[:3] == (255, 255, 255)


def test_outer_white_is_what_a_flood_from_the_border_reaches():
    rng = np.random.default_rng(0)
    pixels = np.where(rng.random((25, 30, 1)) < 0.6, 255, 0).repeat(3, axis=2).astype(np.uint8)
    reached = np.zeros((27, 32), bool)
    reached[0], reached[-1], reached[:, 0], reached[:, -1] = True, True, True, True
    white = np.pad(pixels[..., 0] > 200, 1)
    for _ in range(25 * 30):
        near = reached | np.roll(reached, 1, 0) | np.roll(reached, -1, 0) | np.roll(reached, 1, 1)
        reached = reached | ((near | np.roll(reached, -1, 1)) & white)
    found = outer_white(Image.fromarray(pixels))
    assert (found == reached[1:-1, 1:-1]).all() and found.any() and (white[1:-1, 1:-1] & ~found).any()


def test_a_picture_without_white_ground_or_product_is_named(tmp_path):
    Image.new("RGB", (40, 40), (90, 90, 90)).save(tmp_path / "grey.png")
    Image.new("RGB", (40, 40), "white").save(tmp_path / "empty.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    for name, problem in (
        ("grey", "its ground is not white"),
        ("empty", "nothing stands"),
        ("broken", "cannot be read"),
    ):
        with pytest.raises(InputError, match=rf"{name}\.png.*{problem}"):
            cut_out(tmp_path / f"{name}.png")


def test_a_folder_that_will_not_do_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"`photos` .* has no folder iconic: it must hold iconic/"):
        read_photos(tmp_path)
    with pytest.raises(InputError, match=r"iconic has 2 pictures with names of at most 2 words: put at least 6 there"):
        read_photos(make_photos(tmp_path / "few", products=2))
    with pytest.raises(InputError, match=r"store has 1 pictures: put at least 2 there"):
        read_photos(make_photos(tmp_path / "bare", grounds=1))
    folder = make_photos(tmp_path / "twice")
    product_picture((1, 2, 3)).save(folder / "iconic" / "product a.png")
    with pytest.raises(InputError, match="are both the product 'product a'"):
        read_photos(folder)
    (folder / "iconic" / "product a.png").rename(folder / "iconic" / "---.png")
    with pytest.raises(InputError, match=r"---\.png has no word in its name"):
        read_photos(folder)


def test_a_name_is_few_words_and_nothing_else(tmp_path):
    folder = make_photos(tmp_path)
    product_picture((1, 2, 3)).save(folder / "iconic" / "{old}$(2Fx)-...png")
    product_picture((1, 2, 3)).save(folder / "iconic" / "one-two-three.png")
    assert read_photos(folder).products.keys() == {"old 2fx", *(f"product {letter}" for letter in "abcdef")}


def test_no_background_of_validation_is_one_of_training(photos):
    parts = photos.parts()
    assert set(parts["train"]) | set(parts["val"]) == set(photos.grounds)
    assert not set(parts["train"]) & set(parts["val"])


# --- scenes and sentences ---------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6))
def test_members_differ_in_one_product(seed):
    group = product_scenes.make_group(random.Random(seed), NAMES)
    scenes = [frozenset(group.scene(member)) for member in range(GROUP_SIZE)]
    assert len(set(scenes)) == GROUP_SIZE
    for scene in scenes:
        assert len({item.name for item in scene}) == len({item.place for item in scene}) == len(scene)
        assert all(len(scene ^ other) <= 2 for other in scenes)


@given(seed=st.integers(0, 10**6))
def test_a_sentence_fits_one_member_of_its_group(seed):
    group = product_scenes.make_group(random.Random(seed), NAMES)
    pairs = group_triplets(group, product_scenes.change_between)
    assert pairs
    for reference, target in pairs:
        old = group.variants[reference]
        said = {
            member: set(product_scenes.sentences(old, group.variants[member])) for a, member in pairs if a == reference
        }
        others = set().union(*(said[member] for member in said if member != target))
        assert len(said[target]) == product_scenes.MOST_CAPTIONS
        assert not said[target] & others


def test_captions_of_a_pair_are_all_different():
    old = Product("leek", "small", "top")
    rng, said = random.Random(0), set()
    for _ in range(product_scenes.MOST_CAPTIONS):
        said.add(product_scenes.caption_of(old, None, rng, said))
    assert len(said) == product_scenes.MOST_CAPTIONS


def test_the_model_knows_every_word(tmp_path):
    write_model(tmp_path / "m" / "model.yaml", NAMES, "efficientnet_lite0")
    config = load_config(str(tmp_path / "m" / "model.yaml"))
    tokenizer = build_tokenizer(config.tokenizer, config.qformer.vocab_size)
    assert (config.vision.grid_size, config.vision.width, config.qformer.hidden_size) == (8, 128, 64)
    rng, process, longest = random.Random(0), BlipCaptionProcessor(), 0
    for _ in range(100):
        group = product_scenes.make_group(rng, NAMES)
        texts = [product_scenes.describe(group.scene(member), rng) for member in range(GROUP_SIZE)]
        for a, b in group_triplets(group, product_scenes.change_between):
            texts += product_scenes.sentences(group.variants[a], group.variants[b])
        for tokens in (tokenizer.tokenize(process(text)) for text in texts):
            assert "[UNK]" not in tokens and not [token for token in tokens if token.startswith("##")]
            longest = max(longest, len(tokens))
    assert longest <= config.max_txt_len - 2


def test_a_description_names_every_product():
    scene = (Product("leek", "small", "top"), Product("red apple", "large", "left"))
    rng = random.Random(0)
    for _ in range(40):
        said = product_scenes.describe(scene, rng)
        assert "leek" in said and "red apple" in said
        assert not re.search(r"[{}]", said)


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
def test_boxes_are_those_of_the_painted_pixels(photos, place):
    world = product_world(photos)
    for size in RADII:
        name = next(iter(world.cut_outs))
        rng = random.Random(f"{place}{size}")
        image, boxes = world.render((Product(name, size, place),), rng)
        pixels = np.asarray(image).astype(int)
        painted = pixels[..., 0] - pixels[..., 2] > 40  # the product is red, and its background grey
        rows, columns = np.nonzero(painted)
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert boxes[0]["label"] == name
        box = [edge * side for edge, side in zip(boxes[0]["box"], image.size * 2, strict=True)]
        np.testing.assert_allclose(box, found, atol=1)
        middle = (box[0] + box[2]) / 2 * 3 / image.width, (box[1] + box[3]) / 2 * 3 / image.height
        assert (int(middle[0]), int(middle[1])) == (PLACES.index(place) % 3, PLACES.index(place) // 3)


def test_boxes_lie_in_the_image_with_the_largest_first(photos):
    world = product_world(photos)
    groups = world.groups(random.Random(1))
    for number in range(20):
        scene = next(groups).scene(number % GROUP_SIZE)
        image, boxes = world.render(scene, random.Random(number))
        assert sorted(box["label"] for box in boxes) == sorted(item.name for item in scene)
        areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box["box"] for box in boxes)]
        assert areas == pytest.approx(sorted(areas, reverse=True)) and min(areas) > 0
        assert all(0 <= edge <= 1 for box in boxes for edge in box["box"])
        assert max(image.size) <= 2 * min(image.size) + 1


def test_the_world_fits_the_writer_of_the_demo():
    members = {name for name in vars(World) if not name.startswith("_")} | World.__annotations__.keys()
    assert members >= {"groups", "change_between", "caption_of", "render", "suffix", "save_options"}
    assert all(hasattr(ProductWorld, name) for name in members)


# --- the dataset ------------------------------------------------------------------------------------------------------


def test_the_dataset_is_cirrs_with_labelled_boxes(dataset, photos):
    benchmark = TrainConfig(dataset="CIRR", data_path=dataset).benchmark
    for split, images, queries in (("train", 12, 20), ("val", 6, 8)):
        places = benchmark.image_paths(split)
        assert len(benchmark.queries(split, places)) == queries and len(places) == images
        boxes = load_boxes(dataset / "boxes" / f"cirr_boxes_{split}.json")
        assert boxes.keys() == places.keys()
        assert {region.label for regions in boxes.values() for region in regions} <= photos.products.keys()
        for place in places.values():
            with Image.open(dataset / place) as image:
                assert image.format == "JPEG" and image.mode == "RGB"


def test_backgrounds_of_validation_are_others_than_of_training(dataset, photos):
    """Every background here is of one grey, which most of a picture's border has."""
    greys = {}
    for part, paths in photos.parts().items():
        greys[part] = {Image.open(path).getpixel((0, 0))[0] for path in paths}
    for split in ("train", "val"):
        for place in read(dataset, f"cirr/image_splits/split.rc2.{split}.json").values():
            with Image.open(dataset / place) as image:
                seen = np.bincount(np.asarray(image.convert("L")).ravel()).argmax()
            assert min(abs(int(seen) - grey) for grey in greys[split]) <= 3


def test_other_scenes_are_described_and_are_others(dataset):
    described = read(dataset / OTHER, "descriptions.json")
    boxes = load_boxes(dataset / OTHER / "boxes" / "cirr_boxes_train.json")
    assert described.keys() == boxes.keys() and len(boxes) == 6
    for name, texts in described.items():
        assert len(texts) == 2
        assert all(region.label in text for region in boxes[name] for text in texts)


def test_two_runs_write_the_same_bytes_and_other_seeds_others(dataset, photos, tmp_path):
    assert not make_product_dataset(dataset, photos, TINY)
    for name, seed in (("same", TINY.seed), ("other", TINY.seed + 1)):
        make_product_dataset(tmp_path / name, photos, ProductSettings(**vars(TINY) | {"seed": seed}))
    files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in
             (dataset, tmp_path / "same", tmp_path / "other")]  # fmt: skip
    assert files[0] == files[1]
    assert files[0].keys() == files[2].keys()
    image = next(path for path in files[0] if path.suffix == ".jpg")
    assert files[0][image] != files[2][image]


def test_a_dataset_of_other_photographs_is_never_mixed(dataset, tmp_path):
    others = read_photos(make_photos(tmp_path, products=LEAST_PRODUCTS + 1))
    with pytest.raises(InputError, match=r"dataset of products with other settings .*give another --folder"):
        make_product_dataset(dataset, others, TINY)


def test_the_real_photographs_will_do(shared):
    if not (shared / "photos" / "products").is_dir():
        pytest.skip("the photographs of products are not in the shared data folder")
    photos = read_photos(shared / "photos" / "products")
    world = product_world(photos)
    assert len(world.cut_outs) == 24 and len(photos.grounds) == 414
    assert {name: len(paths) for name, paths in photos.parts().items()} == {"train": 300, "val": 114}
    for picture in world.cut_outs.values():
        share = np.asarray(picture.getchannel("A")).mean() / 255
        assert 0.15 < share < 1  # of its box: a leek fills the least
