"""Scenes of the demo dataset: objects on a 3x3 raster, the changes between them, and captions. No files here."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import permutations, zip_longest

from PIL import Image, ImageDraw

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
# Radius of an object in parts of the shorter side of its cell; with the largest jitter the two stay apart, below 0.5.
RADII = {"small": 0.26, "large": 0.44}
GROUP_SIZE = 6

WORDINGS = {
    "recolour": (
        "make the {old} {colour}",
        "the {old} is {colour} now",
        "change the color of the {old} to {colour}",
        "same picture but the {old} has turned {colour}",
        "paint the {old} {colour} instead",
        "the {old} should be {colour} rather than {old_colour}",
    ),
    "reshape": (
        "turn the {old} into a {shape}",
        "replace the {old} with a {shape} of the same color",
        "the {old} becomes a {shape}",
        "has a {old_colour} {shape} where the {old} was",
        "instead of the {old} show a {old_colour} {shape}",
        "change the {old} to a {shape}",
    ),
    "resize": (
        "make the {old} {comparative}",
        "the {old} should be {comparative}",
        "show a {comparative} version of the {old}",
        "same scene with a {comparative} {old}",
        "the {old} is {comparative} than before",
        "change the {old} from {old_size} to {size}",
    ),
    "move": (
        "move the {old} to the {place}",
        "the {old} is at the {place} now",
        "put the {old} at the {place} of the image",
        "same objects but the {old} goes from the {old_place} to the {place}",
        "place the {old} in the {place} instead",
        "shift the {old} over to the {place}",
    ),
    "add": (
        "add a {size} {new} at the {place}",
        "there is also a {size} {new} at the {place}",
        "put one more object at the {place}: a {size} {new}",
        "same scene plus a {size} {new} in the {place}",
        "now has a {size} {new} at the {place} as well",
        "include another object, a {size} {new} at the {place}",
    ),
    "remove": (
        "remove the {old}",
        "take the {old} away",
        "the {old} is gone",
        "same picture without the {old}",
        "same scene but the {old} is removed",
        "no {old} any more",
    ),
}
ATTRIBUTE_CHANGES = {"colour": "recolour", "shape": "reshape", "size": "resize", "place": "move"}
# The chance that a caption names the object with its size: "the small red circle".
NAMED_WITH_SIZE = 0.4


@dataclass(frozen=True)
class Difficulty:
    """What a scene is made of. `objects`: fewest and most; the group's scene without one of them has one less.

    `size_jitter` is a part of the radius, `place_jitter` a part of the free room in the cell (at most 0.5, so that a
    centre crop cuts no object away), `noise` the largest darkening of the background, 0..255.
    """

    objects: tuple[int, int]
    colours: int
    shapes: int
    size_jitter: float
    place_jitter: float
    noise: int


DIFFICULTIES = {
    "easy": Difficulty((3, 3), 6, 3, 0.0, 0.1, 0),
    "normal": Difficulty((3, 4), 7, 4, 0.05, 0.3, 0),
    "hard": Difficulty((4, 5), 8, 6, 0.12, 0.5, 24),
}


@dataclass(frozen=True)
class SceneObject:
    """One object; `place` is a cell of the 3x3 raster.

    What no caption says is left out of comparisons: `scale` multiplies the radius, `offset` in [-1, 1] x [-1, 1] is the
    position within the cell, from border to border.
    """

    shape: str
    colour: str
    size: str
    place: str
    scale: float = field(default=1.0, compare=False)
    offset: tuple[float, float] = field(default=(0.0, 0.0), compare=False)

    @property
    def words(self) -> str:
        """Colour and shape, which no two objects of a scene share."""
        return f"{self.colour} {self.shape}"


Scene = tuple[SceneObject, ...]


@dataclass(frozen=True)
class Group:
    """Six scenes that have `fixed` in common and differ in one object; a variant that is None lacks it."""

    fixed: Scene
    variants: tuple[SceneObject | None, ...]

    def scene(self, member: int) -> Scene:
        variant = self.variants[member]
        return self.fixed if variant is None else (*self.fixed, variant)

    def scenes(self) -> list[Scene]:
        return [self.scene(member) for member in range(GROUP_SIZE)]


def make_group(rng: random.Random, difficulty: Difficulty) -> Group:
    """A scene, the scene without one of its objects, and four changes of one attribute of that object."""
    *fixed, changing = make_scene(rng, difficulty)
    variants = [changing, None, *sample_changes(single_changes(changing, tuple(fixed), difficulty), rng)]
    rng.shuffle(variants)
    return Group(tuple(fixed), tuple(variants))


def make_scene(rng: random.Random, difficulty: Difficulty) -> Scene:
    """Objects that differ in place and in (shape, colour), each with its jitter."""
    count = rng.randint(*difficulty.objects)
    words = rng.sample(all_words(difficulty), count)
    places = rng.sample(PLACES, count)
    return tuple(
        SceneObject(shape, colour, rng.choice(tuple(RADII)), place, *random_jitter(rng, difficulty))
        for (shape, colour), place in zip(words, places, strict=True)
    )


def random_jitter(rng: random.Random, difficulty: Difficulty) -> tuple[float, tuple[float, float]]:
    """(scale, offset) of a `SceneObject`."""
    size, place = difficulty.size_jitter, difficulty.place_jitter
    return 1 + rng.uniform(-size, size), (rng.uniform(-place, place), rng.uniform(-place, place))


def all_words(difficulty: Difficulty) -> list[tuple[str, str]]:
    """Every (shape, colour) of a difficulty."""
    return [(shape, colour) for shape in SHAPES[: difficulty.shapes] for colour in list(COLOURS)[: difficulty.colours]]


def single_changes(changing: SceneObject, fixed: Scene, difficulty: Difficulty) -> dict[str, list[SceneObject]]:
    """Attribute -> the variants of an object in it that keep every place and every (colour, shape) unique."""
    places = {other.place for other in fixed}
    words = {other.words for other in fixed}
    values = {
        "colour": list(COLOURS)[: difficulty.colours],
        "shape": SHAPES[: difficulty.shapes],
        "size": tuple(RADII),
        "place": [place for place in PLACES if place not in places],
    }
    variants = {name: [replace(changing, **{name: value}) for value in options] for name, options in values.items()}
    return {name: [v for v in found if v != changing and v.words not in words] for name, found in variants.items()}


def sample_changes(changes: dict[str, list[SceneObject]], rng: random.Random) -> list[SceneObject]:
    """Four variants. The attribute is drawn first: there are few sizes and many colours, but no change is rare."""
    left = {name: rng.sample(variants, len(variants)) for name, variants in changes.items()}
    chosen = []
    for _ in range(GROUP_SIZE - 2):
        chosen.append(left[rng.choice([name for name, variants in left.items() if variants])].pop())
    return chosen


def change_between(old: SceneObject | None, new: SceneObject | None) -> str | None:
    """The kind of change from one variant to another, where one caption says it: else None."""
    if old is None or new is None:
        return "add" if old is None else "remove"
    changed = [kind for name, kind in ATTRIBUTE_CHANGES.items() if getattr(old, name) != getattr(new, name)]
    return changed[0] if len(changed) == 1 else None


def caption_of(old: SceneObject | None, new: SceneObject | None, rng: random.Random) -> str:
    """A caption for a change that `change_between` names."""
    kind = change_between(old, new)
    wording, with_size = rng.choice(WORDINGS[kind]), rng.random() < NAMED_WITH_SIZE
    before, after = old or new, new or old
    return wording.format(
        old=f"{before.size} {before.words}" if with_size and kind != "resize" else before.words,
        old_colour=before.colour,
        old_size=before.size,
        old_place=before.place,
        new=after.words,
        colour=after.colour,
        shape=after.shape,
        size=after.size,
        place=after.place,
        comparative="larger" if after.size == "large" else "smaller",
    )


def group_triplets(group: Group, rng: random.Random) -> list[tuple[int, int]]:
    """Every ordered pair of members that one caption can connect, the kinds of change in turn."""
    by_kind: dict[str, list[tuple[int, int]]] = {}
    for pair in permutations(range(GROUP_SIZE), 2):
        kind = change_between(*(group.variants[member] for member in pair))
        if kind:
            by_kind.setdefault(kind, []).append(pair)
    hands = [rng.sample(pairs, len(pairs)) for pairs in by_kind.values()]
    return [pair for turn in zip_longest(*rng.sample(hands, len(hands))) for pair in turn if pair]


def distinct_groups(rng: random.Random, difficulty: Difficulty, most_tries: int = 5000) -> Iterator[Group]:
    """Groups without end whose scenes are more than one object away from every scene of an earlier group.

    Stops once `most_tries` groups in a row were too close to earlier ones.
    """
    seen: set[frozenset] = set()
    tries = 0
    while tries < most_tries:
        group = make_group(rng, difficulty)
        traces = {trace for scene in group.scenes() for trace in scene_traces(scene)}
        tries += 1
        if seen.isdisjoint(traces):
            seen |= traces
            tries = 0
            yield group


def scene_traces(scene: Scene) -> list[frozenset]:
    """The scene, and the scene without each of its objects: scenes that one change connects share one of these.

    Single objects are left out: too few of them exist for each to occur in one group only.
    """
    less = [frozenset(scene) - {item} for item in scene]
    return [frozenset(scene), *(rest for rest in less if len(rest) > 1)]


def render(scene: Scene, rng: random.Random, noise: int = 0) -> tuple[Image.Image, list[list[float]]]:
    """The scene as an RGB image of random size and aspect ratio, and its boxes: xyxy, raw frame, normalised to [0, 1],
    largest area first.
    """
    width, height = random_size(rng)
    image = background(width, height, rng)
    if noise:
        add_noise(image, rng, noise)
    boxes = [paint(image, item) for item in scene]
    boxes.sort(key=lambda box: -(box[2] - box[0]) * (box[3] - box[1]))
    return image, [[left / width, top / height, right / width, bottom / height] for left, top, right, bottom in boxes]


def random_size(rng: random.Random) -> tuple[int, int]:
    """(width, height) in pixels: the longer side 160 to 320, up to twice the shorter."""
    longer = rng.randint(160, 320)
    shorter = max(round(longer / rng.uniform(1, 2)), -(-longer // 2))
    return (longer, shorter) if rng.random() < 0.6 else (shorter, longer)


def background(width: int, height: int, rng: random.Random) -> Image.Image:
    """A light, nearly grey shade with a soft vertical gradient: it says nothing about the scene."""
    shade = rng.randint(212, 244)
    ends = [bytes(shade + slope + rng.randint(-4, 4) for _ in "rgb") for slope in (-5, 5)]
    rng.shuffle(ends)
    return Image.frombytes("RGB", (1, 2), b"".join(ends)).resize((width, height), Image.Resampling.BILINEAR)


def add_noise(image: Image.Image, rng: random.Random, amplitude: int) -> None:
    """Darken tiles of 8 x 8 pixels, each by up to `amplitude`."""
    small = (image.width // 8 + 1, image.height // 8 + 1)
    noise = Image.frombytes("L", small, bytes(rng.randrange(amplitude) for _ in range(small[0] * small[1])))
    image.paste(
        (0, 0, 0), mask=noise.resize((8 * small[0], 8 * small[1]), Image.Resampling.NEAREST).crop((0, 0, *image.size))
    )


def paint(image: Image.Image, item: SceneObject) -> tuple[int, int, int, int]:
    """Paint an object inside its cell -> the box of the painted pixels: xyxy in pixels, right and bottom excluded."""
    column, row = PLACES.index(item.place) % 3, PLACES.index(item.place) // 3
    left, right = (image.width * step // 3 for step in (column, column + 1))
    top, bottom = (image.height * step // 3 for step in (row, row + 1))
    side = round(2 * item.scale * RADII[item.size] * min(right - left, bottom - top))
    x = left + round((right - left - side) * (1 + item.offset[0]) / 2)
    y = top + round((bottom - top - side) * (1 + item.offset[1]) / 2)
    mask = shape_mask(item.shape, side)
    image.paste(COLOURS[item.colour], (x, y), mask)
    box = mask.getbbox()
    return x + box[0], y + box[1], x + box[2], y + box[3]


def shape_mask(shape: str, side: int) -> Image.Image:
    """A 1-bit mask of `side` x `side` pixels."""
    mask = Image.new("1", (side, side))
    draw, last = ImageDraw.Draw(mask), side - 1
    third = side / 3
    if shape == "square":
        draw.rectangle((0, 0, last, last), fill=1)
    elif shape == "triangle":
        draw.polygon([(last / 2, 0), (last, last), (0, last)], fill=1)
    elif shape == "diamond":
        draw.polygon([(last / 2, 0), (last, last / 2), (last / 2, last), (0, last / 2)], fill=1)
    elif shape == "cross":
        draw.rectangle((third, 0, last - third, last), fill=1)
        draw.rectangle((0, third, last, last - third), fill=1)
    else:
        draw.ellipse((0, 0, last, last), fill=1)
        if shape == "ring":
            draw.ellipse((third, third, last - third, last - third), fill=0)
    return mask
