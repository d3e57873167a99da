"""Scenes of the demo dataset: objects on a 3x3 raster, the changes between them, and captions. No files here."""

import random
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from typing import Any, Generic, TypeVar

T = TypeVar("T")

COLOURS = {
    "red": (220, 30, 30),
    "green": (20, 150, 50),
    "blue": (30, 60, 220),
    "yellow": (240, 210, 20),
    "purple": (140, 40, 170),
    "orange": (245, 130, 20),
    "black": (15, 15, 15),
    "pink": (255, 130, 190),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
PLACES = (
    "top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
# Radius of an object in parts of the shorter side of its cell.
RADII = {"small": 0.26, "large": 0.46}
GROUP_SIZE = 6

WORDINGS = {
    "recolour": (
        "make the {old} {colour}",
        "the {old} is {colour} now",
        "change the colour of the {old} to {colour}",
        "same picture but the {old} has turned {colour}",
        "paint the {old} {colour} instead",
    ),
    "reshape": (
        "turn the {old} into a {shape}",
        "replace the {old} with a {shape} of the same colour",
        "the {old} becomes a {shape}",
        "has a {shape} where the {old} was",
        "instead of the {old} show a {shape} in that colour",
    ),
    "resize": (
        "make the {old} {comparative}",
        "the {old} should be {comparative}",
        "show a {comparative} version of the {old}",
        "same scene with a {comparative} {old}",
        "the {old} is {comparative} than before",
    ),
    "move": (
        "move the {old} to the {place}",
        "the {old} is at the {place} now",
        "put the {old} at the {place} of the image",
        "same objects but the {old} goes to the {place}",
        "place the {old} in the {place} instead",
    ),
    "add": (
        "add a {size} {new} at the {place}",
        "there is also a {size} {new} at the {place}",
        "put one more object at the {place}: a {size} {new}",
        "same scene plus a {size} {new} in the {place}",
        "now has a {size} {new} at the {place} as well",
    ),
    "remove": (
        "remove the {old}",
        "take the {old} away",
        "the {old} is gone",
        "same picture without the {old}",
        "no {old} any more",
    ),
}
MOST_CAPTIONS = min(map(len, WORDINGS.values()))  # of one pair of images
ATTRIBUTE_CHANGES = {"colour": "recolour", "shape": "reshape", "size": "resize", "place": "move"}


@dataclass(frozen=True)
class Difficulty:
    """How many objects stand in a scene, of how many colours and shapes, before a background that is how noisy (0..255)
    and cluttered with how many pale rectangles, of which no sentence speaks and which are others in every image. The
    longer side of an image is up to `aspect` times the shorter.
    """

    objects: tuple[int, int]
    colours: int
    shapes: int
    noise: int = 0
    clutter: int = 0
    aspect: float = 2


DIFFICULTIES = {
    "easy": Difficulty((2, 2), 6, 3),
    "normal": Difficulty((3, 4), 7, 4),
    "hard": Difficulty((4, 6), 8, 6, noise=24),
    # Of `auto_train_with_boxes.sh --test`: square, so that no object is padded away from its place in the ViT's grid.
    "clear": Difficulty((2, 3), 6, 4, aspect=1),
    # Of benchmark_regions.py: quick to learn, and not to be learned to the end.
    "plain": Difficulty((2, 3), 5, 3),
    "cluttered": Difficulty((2, 3), 5, 3, clutter=8),
}


@dataclass(frozen=True)
class SceneObject:
    """One object; `place` is a cell of the 3x3 raster."""

    shape: str
    colour: str
    size: str
    place: str

    @property
    def words(self) -> str:
        """Colour and shape, which no two objects of a scene share."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Group(Generic[T]):
    """Six scenes that have `fixed` in common and differ in one object; a variant that is None lacks it."""

    fixed: tuple[T, ...]
    variants: tuple[T | None, ...]

    def scene(self, member: int) -> tuple[T, ...]:
        variant = self.variants[member]
        return self.fixed if variant is None else (*self.fixed, variant)


def make_group(rng: random.Random, difficulty: Difficulty) -> Group[SceneObject]:
    """A scene, the scene without one of its objects, and four changes of one attribute of that object."""
    count = rng.randint(*difficulty.objects)
    words = rng.sample(all_words(difficulty), count)
    places = rng.sample(PLACES, count)
    objects = [
        SceneObject(shape, colour, rng.choice(tuple(RADII)), place)
        for (shape, colour), place in zip(words, places, strict=True)
    ]
    fixed, changing = tuple(objects[:-1]), objects[-1]
    changes = rng.sample(single_changes(changing, fixed, difficulty), GROUP_SIZE - 2)
    variants = [changing, None, *changes]
    rng.shuffle(variants)
    return Group(fixed, tuple(variants))


def all_words(difficulty: Difficulty) -> list[tuple[str, str]]:
    """Every (shape, colour) of a difficulty."""
    return [(shape, colour) for shape in SHAPES[: difficulty.shapes] for colour in list(COLOURS)[: difficulty.colours]]


def single_changes(changing: SceneObject, fixed: tuple[SceneObject, ...], difficulty: Difficulty) -> list[SceneObject]:
    """All variants of an object in one attribute that keep every place and every (colour, shape) unique."""
    places = {other.place for other in fixed}
    words = {other.words for other in fixed}
    values = {
        "colour": list(COLOURS)[: difficulty.colours],
        "shape": SHAPES[: difficulty.shapes],
        "size": tuple(RADII),
        "place": [place for place in PLACES if place not in places],
    }
    variants = [replace(changing, **{name: value}) for name, options in values.items() for value in options]
    return [variant for variant in variants if variant != changing and variant.words not in words]


def change_between(old: object | None, new: object | None, kinds: Mapping[str, str] = ATTRIBUTE_CHANGES) -> str | None:
    """The kind of change from one variant to another if one caption can say it, else None.

    `kinds` names the change of each attribute.
    """
    if old is None or new is None:
        return "add" if old is None else "remove"
    changed = [kind for name, kind in kinds.items() if getattr(old, name) != getattr(new, name)]
    return changed[0] if len(changed) == 1 else None


def caption_of(old: SceneObject | None, new: SceneObject | None, rng: random.Random, said: Container[str] = ()) -> str:
    """A caption for a change that `change_between` names, but none of those that were `said` before."""
    change = change_between(old, new)
    assert change is not None
    wordings = WORDINGS[change]
    return rng.choice(
        [caption for caption in (_worded(wording, old, new) for wording in wordings) if caption not in said]
    )


def _worded(wording: str, old: SceneObject | None, new: SceneObject | None) -> str:
    after = new or old
    assert after is not None
    return wording.format(
        old=old.words if old else "",
        new=after.words,
        colour=after.colour,
        shape=after.shape,
        size=after.size,
        place=after.place,
        comparative="larger" if after.size == "large" else "smaller",
    )


def group_triplets(group: Group, change: Callable[[Any, Any], str | None] = change_between) -> list[tuple[int, int]]:
    """Every ordered pair of members that one caption can connect: `change` names what it says, or is None."""
    pairs = permutations(range(GROUP_SIZE), 2)
    return [(a, b) for a, b in pairs if change(group.variants[a], group.variants[b])]


def distinct_groups(rng: random.Random, difficulty: Difficulty, most_tries: int = 2000) -> Iterator[Group[SceneObject]]:
    """`distinct` groups of a difficulty."""
    return distinct(iter(partial(make_group, rng, difficulty), None), most_tries)


def distinct(groups: Iterable[Group[T]], most_tries: int = 2000) -> Iterator[Group[T]]:
    """The groups no scene of which has occurred before; stops once `most_tries` in a row had nothing new."""
    seen: set[frozenset[T]] = set()
    tries = 0
    for group in groups:
        scenes = {frozenset(group.scene(member)) for member in range(GROUP_SIZE)}
        tries += 1
        if seen.isdisjoint(scenes):
            seen |= scenes
            tries = 0
            yield group
        if tries == most_tries:
            return
