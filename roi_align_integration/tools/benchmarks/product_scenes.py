"""Scenes of product cut-outs before photographs: what stands where, the changes between scenes, and their sentences."""

import random
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace

from sprc.demo import scenes
from sprc.demo.scenes import GROUP_SIZE, PLACES, RADII, Group

OBJECTS = (2, 4)  # of a scene
REPLACEMENTS = 2  # products that stand in the place of another one, in a group
LEAST_PRODUCTS = OBJECTS[1] + REPLACEMENTS
COMPARATIVES = {"small": "smaller", "large": "larger"}
KINDS = {"name": "replace", "size": "resize", "place": "move"}  # attribute of a product -> what a change of it is
WORDINGS = {
    "replace": (
        "replace the {old} with a {new}",
        "a {new} instead of the {old}",
        "swap the {old} for a {new}",
        "has a {new} where the {old} was",
        "the {old} becomes a {new}",
    ),
    "resize": (
        "make the {old} {comparative}",
        "the {old} should be {comparative}",
        "same scene with a {comparative} {old}",
        "show a {comparative} {old}",
        "the {old} is {comparative} than before",
    ),
    "move": (
        "move the {old} to the {place}",
        "the {old} is at the {place} now",
        "put the {old} at the {place} of the image",
        "same products but the {old} goes to the {place}",
        "place the {old} in the {place} instead",
    ),
    "add": (
        "add a {size} {new} at the {place}",
        "there is also a {size} {new} at the {place}",
        "one more product at the {place}: a {size} {new}",
        "same scene plus a {size} {new} in the {place}",
        "now has a {size} {new} at the {place} as well",
    ),
    "remove": (
        "remove the {old}",
        "take the {old} away",
        "the {old} is gone",
        "same scene without the {old}",
        "no {old} any more",
    ),
}
MOST_CAPTIONS = min(map(len, WORDINGS.values()))  # of one pair of images
DESCRIPTIONS = ("{products}", "a photo of {products}", "there is {products}", "{products} in a shop")
JOINT = " and "  # between phrases
PHRASES = ("a {size} {name} at the {place}", "a {name} in the {place}", "a {size} {name}", "a {name}")


@dataclass(frozen=True)
class Product:
    """One product of a scene; `place` is a cell of the 3 x 3 raster."""

    name: str
    size: str
    place: str


def make_group(rng: random.Random, names: list[str]) -> Group[Product]:
    """A scene, the scene without one of its products, and four changes of one attribute of that product.

    There are at least `LEAST_PRODUCTS` names.
    """
    count = rng.randint(*OBJECTS)
    places = rng.sample(PLACES, count)
    chosen = rng.sample(names, count + REPLACEMENTS)
    products = [
        Product(name, rng.choice(tuple(RADII)), place) for name, place in zip(chosen[:count], places, strict=True)
    ]
    fixed, changing = tuple(products[:-1]), products[-1]
    (other_size,) = (size for size in RADII if size != changing.size)
    free = rng.choice([place for place in PLACES if place not in places])
    replaced = [replace(changing, name=name) for name in chosen[count:]]
    variants = [changing, None, *replaced, replace(changing, size=other_size), replace(changing, place=free)]
    assert len(variants) == GROUP_SIZE
    rng.shuffle(variants)
    return Group(fixed, tuple(variants))


def change_between(old: Product | None, new: Product | None) -> str | None:
    """The kind of change from one variant to another if one sentence can say it, else None."""
    return scenes.change_between(old, new, KINDS)


def caption_of(old: Product | None, new: Product | None, rng: random.Random, said: Container[str] = ()) -> str:
    """A sentence for a change that `change_between` names, but none of those that were `said` before."""
    return rng.choice([sentence for sentence in sentences(old, new) if sentence not in said])


def sentences(old: Product | None, new: Product | None) -> list[str]:
    """Every sentence for a change that `change_between` names."""
    kind, after = change_between(old, new), new or old
    assert kind is not None and after is not None
    words = {"old": old.name if old else "", "new": after.name, "comparative": COMPARATIVES[after.size]}
    return [wording.format(**vars(after) | words) for wording in WORDINGS[kind]]


def describe(scene: tuple[Product, ...], rng: random.Random) -> str:
    """What the scene holds, in one sentence: its products in any order, with size or place or neither."""
    products = rng.sample(scene, len(scene))
    phrases = [rng.choice(PHRASES).format(**vars(product)) for product in products]
    return rng.choice(DESCRIPTIONS).format(products=JOINT.join(phrases))


def all_words(names: Iterable[str]) -> list[str]:
    """Every word that a sentence or description of scenes with these products can hold, sorted."""
    wordings = [wording for of_kind in WORDINGS.values() for wording in of_kind]
    said = [re.sub(r"{\w+}", " ", wording) for wording in (*wordings, *DESCRIPTIONS, *PHRASES)]
    texts = [*said, JOINT, *names, *PLACES, *COMPARATIVES, *COMPARATIVES.values()]
    return sorted({word for text in texts for word in words_of(text)})


def words_of(text: str) -> list[str]:
    """The words of a text in lower case: Latin letters and digits alone."""
    return re.findall("[a-z0-9]+", text.lower())
