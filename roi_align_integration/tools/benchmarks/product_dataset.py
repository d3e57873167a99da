"""Writes scenes of products as a dataset: training and validation in CIRR's layout, and other scenes with descriptions.

The other scenes are in the folder `other` beside them, with boxes and `descriptions.json`. `write_model` writes what a
model needs to know of the products: a vocabulary of their words, and its sizes.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import yaml
from product_photos import Photos, ProductWorld, product_world
from product_scenes import all_words, describe

from lavis.models.model_config import ModelConfig, QformerConfig, VisionConfig
from lavis.models.tokenizer import SPECIAL
from sprc.core.files import write_atomically
from sprc.demo.dataset import SettingsFile, SplitWriter, take_groups
from sprc.demo.scenes import GROUP_SIZE, Group

SETTINGS_FILE, OTHER, DESCRIPTIONS_FILE = "products.json", "other", "descriptions.json"
DESCRIPTIONS = 2  # of an image of the other scenes
VOCABULARY_FILE = "vocab.txt"


@dataclass(frozen=True)
class ProductSettings:
    """What fixes the dataset, with the photographs. Images are rounded up to whole groups of six."""

    images: int
    triplets: int
    val_images: int
    val_triplets: int
    other_images: int
    seed: int


def make_product_dataset(output: Path, photos: Photos, settings: ProductSettings) -> bool:
    """Write the dataset; False if it is there already, of the same photographs and settings.

    No scene occurs twice, and no background of validation in training. Raises InputError if the folder holds other
    data, or a picture cannot be used.
    """
    place = SettingsFile(output, SETTINGS_FILE, "dataset of products", "give another --folder")
    described = asdict(settings) | {"photos": photos.fingerprint()}
    return place.write_once(described, lambda: _write_splits(output, photos, settings))


def _write_splits(output: Path, photos: Photos, settings: ProductSettings) -> None:
    world, grounds = product_world(photos), photos.parts()
    groups = world.groups(random.Random(f"{settings.seed}/groups"))
    take = partial(take_groups, groups, title="this set of products", fix="put more pictures of products there")
    first_pair = 0
    for split, images, triplets in (
        ("train", settings.images, settings.triplets),
        ("val", settings.val_images, settings.val_triplets),
    ):
        writer = SplitWriter(output, split, take(images), world.before(grounds[split]), settings.seed)
        writer.write_images()
        writer.write_captions(triplets, first_pair)
        first_pair += triplets
    write_other_scenes(output / OTHER, take(settings.other_images), world, settings.seed)


def write_other_scenes(folder: Path, groups: list[Group], world: ProductWorld, seed: int) -> None:
    """Images in CIRR's layout of training, their boxes, and `DESCRIPTIONS` sentences of what each holds."""
    writer = SplitWriter(folder, "train", groups, world, f"{seed}/{OTHER}")
    writer.write_images()
    rng = random.Random(f"{seed}/{OTHER}/descriptions")
    described = {
        writer.member_name(number, member): [describe(groups[number].scene(member), rng) for _ in range(DESCRIPTIONS)]
        for number, member in members_of(groups)
    }
    write_atomically(folder / DESCRIPTIONS_FILE, json.dumps(described))


def members_of(groups: list[Group]) -> Iterator[tuple[int, int]]:
    """(group number, member) of every image."""
    return ((number, member) for number in range(len(groups)) for member in range(GROUP_SIZE))


def write_model(path: Path, names: list[str], encoder: str) -> None:
    """Write a model's YAML file, and beside it the vocabulary of these products' scenes.

    The input frame is of 128 pixels, and the encoder's grid of 8 x 8 patches of 128 channels.
    """
    vocabulary = [*SPECIAL, *all_words(names)]
    vision = VisionConfig(encoder, image_size=128, patch_size=16, width=128, depth=1, heads=4, mlp_ratio=1.0)
    qformer = QformerConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, cross_attention_freq=1,
        vocab_size=len(vocabulary) + 1, num_query_token=8, max_position_embeddings=128, dropout=0.0,
        initializer_range=0.05,
    )  # fmt: skip
    config = ModelConfig(vision, qformer, embed_dim=64, tokenizer=VOCABULARY_FILE, max_txt_len=48)
    write_atomically(path.with_name(VOCABULARY_FILE), "\n".join(vocabulary) + "\n")
    write_atomically(path, yaml.safe_dump(asdict(config), sort_keys=False))
