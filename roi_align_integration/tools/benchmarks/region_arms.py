"""The arms of a comparison of region losses: what each trains with, its box file, and the settings to tune it over."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import region_models  # noqa: F401  # registers the models that arms name

from lavis.datasets.region_boxes import Region, read_box_file, save_boxes
from lavis.models.blip2_models.region import OBJECTIVES
from sprc.benchmarks.cirr import read_image_split
from sprc.boxes.examples import grid_boxes
from sprc.boxes.saliency import boxes_of_file
from sprc.core.errors import InputError

Box = tuple[float, float, float, float]
Boxes = dict[str, list[Region]]
WINNER = "compose"
BIAS = "bias"  # in the place of an objective: no region loss, and the weight is that of `region_bias`


@dataclass(frozen=True)
class Weight:
    """One setting of the region loss to try: its weight, falling linearly to 0 at `until`, or constant."""

    start: float
    until: float | None = None

    def __str__(self) -> str:
        return f"{self.start:g}" if self.until is None else f"{self.start:g} to 0 at {self.until:g}"


@dataclass(frozen=True)
class WarmUp:
    """A training on the same triplets before the run, which starts from its last weights.

    Its learning rate is `faster` times the run's. `objective` has its own weight; None is SPRC without regions.
    """

    epochs: int
    faster: float
    objective: str | None = None


@dataclass(frozen=True)
class Arm:
    """What one row of the table trains with; `objective` None is SPRC without regions, `BIAS` SPRC without their loss.

    `weights` are the settings to try; the first of them is taken if nothing was tuned. An arm without regions tries as
    many learning rates. `make_boxes` makes the arm's box file out of the true one. `warm_up` is a training before
    it, and `options` are other settings of `TrainConfig`. An arm with `like` is not tuned: it has what was chosen for
    that arm. If `seen` too, it has that arm's weights, and its boxes are those of the images that are ranked.
    """

    title: str
    objective: str | None = None
    weights: tuple[Weight, ...] = ()
    make_boxes: Callable[[Boxes, "BoxSource"], Boxes] | None = None
    max_regions: int = 5
    model: str = "blip2_cir_align_prompt"
    warm_up: WarmUp | None = None
    options: Mapping[str, float] = field(default_factory=dict)
    like: str | None = None
    seen: bool = False


@dataclass(frozen=True)
class BoxSource:
    """What a box maker may need: the seed, and the path of the image of a name."""

    seed: int
    image_path: Callable[[str], Path]

    def rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed}/{purpose}")


def permuted(boxes: Boxes, source: BoxSource) -> Boxes:
    """Every image has the boxes of another one: the same boxes, none in its own place."""
    names = list(boxes)
    source.rng("permuted").shuffle(names)
    return {name: boxes[other] for name, other in zip(names, names[1:] + names[:1], strict=True)}


def on_background(boxes: Boxes, source: BoxSource, tries: int = 20, smaller: float = 0.8) -> Boxes:
    """Every box is moved at random to where no box of its image is, so that it holds background alone.

    After `tries` places it is tried `smaller`. A box that finds no place at a tenth of its sides is left out.
    """
    rng = source.rng("background")
    return {name: list(_moved_away(regions, rng, tries, smaller)) for name, regions in boxes.items()}


def _moved_away(regions: list[Region], rng: random.Random, tries: int, smaller: float) -> Iterator[Region]:
    taken = [region.box for region in regions]
    for x1, y1, x2, y2 in taken:
        scale = 1.0
        while scale > 0.1:
            places = (_somewhere((x2 - x1) * scale, (y2 - y1) * scale, rng) for _ in range(tries))
            free = next((place for place in places if not any(_overlap(place, box) for box in taken)), None)
            if free is not None:
                yield Region(free)
                break
            scale *= smaller


def _somewhere(width: float, height: float, rng: random.Random) -> Box:
    x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return x, y, min(1.0, x + width), min(1.0, y + height)


def _overlap(a: Box, b: Box) -> bool:
    return max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])


def whole_image(boxes: Boxes, source: BoxSource) -> Boxes:
    """One box, the whole image."""
    return {name: [Region((0.0, 0.0, 1.0, 1.0))] for name in boxes}


def fixed_grid(boxes: Boxes, source: BoxSource) -> Boxes:
    """Nine boxes, the same 3 x 3 raster on every image."""
    return dict.fromkeys(boxes, grid_boxes(3))


def detector_like(
    boxes: Boxes, source: BoxSource, jitter: float = 0.1, missed: float = 0.2, spurious: float = 0.2
) -> Boxes:
    """Boxes as a detector finds them: every border moved by a normal `jitter` of the box's side, a part of them missed,
    and now and then a box of nothing.
    """
    rng = source.rng("detector")
    return {name: list(_detected(regions, rng, jitter, missed, spurious)) for name, regions in boxes.items()}


def _detected(regions: list[Region], rng: random.Random, jitter: float, missed: float, spurious: float):
    for region in regions:
        if rng.random() >= missed:
            yield _jittered(region, rng, jitter)
        if rng.random() < spurious:
            x, y = rng.uniform(0, 0.7), rng.uniform(0, 0.7)
            yield Region((x, y, x + rng.uniform(0.1, 0.3), y + rng.uniform(0.1, 0.3)))


def _jittered(region: Region, rng: random.Random, jitter: float) -> Region:
    """The region with moved borders, inside the image; the region itself if nothing would be left of it."""
    x1, y1, x2, y2 = region.box
    sides = (x2 - x1, y2 - y1) * 2
    moved = [
        min(1.0, max(0.0, border + rng.gauss(0, jitter) * side)) for border, side in zip(region.box, sides, strict=True)
    ]
    return Region(tuple(moved)) if moved[0] < moved[2] and moved[1] < moved[3] else region


def salient(boxes: Boxes, source: BoxSource) -> Boxes:
    """The boxes that the saliency method finds."""
    found = {name: boxes_of_file(source.image_path(name), min_area=0.005, max_boxes=5) for name in boxes}
    for name, regions in found.items():
        if isinstance(regions, str):
            raise InputError(f"image {name!r} at {source.image_path(name)}: {regions}")
    return found


# The weights to try; the first is the objective's own.
WEIGHTS = {
    "pairs": (Weight(0.1), Weight(0.5), Weight(0.5, 0.5)),
    "tokens": (Weight(0.5, 0.5), Weight(0.1), Weight(0.5)),
    "query": (Weight(0.5, 0.5), Weight(0.1), Weight(0.5)),
    "compose": (Weight(0.5, 0.5), Weight(0.5), Weight(1.0)),
    "both": (Weight(0.5), Weight(1.0), Weight(1.0, 0.5)),
    "foreground": (Weight(1.0), Weight(0.5), Weight(1.0, 1.0)),
    BIAS: (Weight(4.0, 0.5), Weight(100.0, 0.5), Weight(8.0, 0.5)),
}
# Weights to try for SPRC's other two losses, which upstream has at 0.4 each. `foreground` is SPRC's contrast three
# times more: is a gain the boxes', or that of a contrast that weighs four times as much?
OTHER_LOSSES = (0.1, 0.025, 0.0)
BOX_MAKERS = {
    "permuted": ("boxes permuted between images", permuted, 5),
    "background": ("boxes on background alone", on_background, 5),
    "whole": ("one box, the whole image", whole_image, 5),
    "grid": ("a fixed 3x3 grid", fixed_grid, 9),
    "detector": ("detector-like boxes", detector_like, 5),
    "saliency": ("saliency boxes", salient, 5),
}


def _with_other_boxes(
    objective: str, prefix: str = "", left_out: Sequence[str] = (), **settings: Any
) -> dict[str, Arm]:
    """An objective with every kind of boxes but the true ones, without those that are left out."""
    weights = WEIGHTS[objective]
    return {
        f"{prefix}{name}": Arm(f"`{objective}`, {title}", objective, weights, make_boxes, max_regions, **settings)
        for name, (title, make_boxes, max_regions) in BOX_MAKERS.items()
        if name not in left_out
    }


def _compose_with(what: str, **settings: Any) -> Arm:
    return Arm(f"`compose`, {what}", "compose", WEIGHTS["compose"], like="compose", **settings)


def _foreground_with_bias(strength: float) -> Arm:
    title = f"`foreground`, attention prefers the boxes by {strength:g} at first, the other losses at 0.1"
    options = {"region_bias": strength, **other_losses(0.1)}
    return Arm(title, "foreground", WEIGHTS["foreground"], options=options, like="foreground")


def other_losses(weight: float) -> dict[str, float]:
    """Settings that give the two losses beside SPRC's contrast this weight each."""
    return {"loss_rtc": weight, "loss_align": weight}


def _with_other_losses(name: str, title: str, objective: str | None = None) -> dict[str, Arm]:
    """An arm with each of `OTHER_LOSSES`."""
    return {
        f"{name}-{weight:g}": Arm(
            f"{title}, the other losses at {weight:g} each", objective, WEIGHTS.get(objective, ()),
            options=other_losses(weight), like=name,
        )
        for weight in OTHER_LOSSES
    }  # fmt: skip


def _seen(name: str, title: str, boxes: str | None = None) -> dict[str, Arm]:
    """The weights of an arm, with boxes at retrieval: exact ones, or those of a box maker."""
    make_boxes = None if boxes is None else BOX_MAKERS[boxes][1]
    return {f"{name}+boxes": Arm(f"{title}, boxes at retrieval too", make_boxes=make_boxes, like=name, seen=True)}


ARMS = {
    "none": Arm("no regions (SPRC)"),
    **{objective: Arm(f"`{objective}`", objective, WEIGHTS[objective]) for objective in OBJECTIVES},
    **_with_other_boxes(WINNER, like=WINNER),
    **_with_other_boxes("both", "both-"),
    # It sees what any of the boxes has: a grid, which has everything, would be `whole` again.
    **_with_other_boxes("foreground", "foreground-", left_out=("grid",)),
    BIAS: Arm(
        "attention prefers the boxes at first, the other losses at 0.1", BIAS, WEIGHTS[BIAS], options=other_losses(0.1)
    ),
    # Where boxes hold everything there is no bias: these would be `none-0.1`.
    **_with_other_boxes(BIAS, "bias-", left_out=("whole", "grid"), options=other_losses(0.1), like=BIAS),
    "compose-bias4": _compose_with("attention prefers the boxes by 4 at first", options={"region_bias": 4.0}),
    "foreground-bias4": _foreground_with_bias(4.0),
    "foreground-bias100": _foreground_with_bias(100.0),
    "changed": Arm("`both`, the changed region alone", "both", WEIGHTS["both"], model="blip2_cir_changed_region"),
    "text": Arm("sentence only", model="blip2_cir_text_only"),
    "image": Arm("reference image only", model="blip2_cir_image_only"),
    # Ideas for training from pretrained weights, each set against the arm of its objective, or against each other.
    "fast": _compose_with("new parameters at ten times the rate", model="blip2_cir_fast_heads"),
    "started": _compose_with("`region_token_proj` started from `text_proj`", model="blip2_cir_started_head"),
    "warm": Arm("no regions, after a warm-up with `compose`", warm_up=WarmUp(6, 2.0, "compose"), like="none"),
    "warm-none": Arm("no regions, after a warm-up without", warm_up=WarmUp(6, 2.0), like="none"),
    **_with_other_losses("none", "no regions"),
    **_with_other_losses("foreground", "`foreground`", "foreground"),
    # A score is then the mean of two: of whole images, and of what is seen through the boxes.
    **_seen("none-0.1", "no regions, the other losses at 0.1"),
    **_seen(BIAS, f"`{BIAS}`"),
    **_seen("bias-detector", "`bias`, detector-like boxes", "detector"),
    **_seen("bias-saliency", "`bias`, saliency boxes", "saliency"),
}
# What each idea is set against.
IDEAS = {
    "none": [arm for arm in ARMS if arm.startswith("none-")],
    "compose": ["none", "fast", "started", "compose-bias4"],
    "warm": ["none", "warm-none"],
    "foreground": ["none", *(f"foreground-{weight:g}" for weight in OTHER_LOSSES)],
    "foreground-bias4": ["none-0.1", "foreground", "foreground-bias100"],
}


def box_file_of(name: str, true_file: Path, source: BoxSource, folder: Path) -> Path | None:
    """The box file of an arm, made if it is not there; None for an arm without regions."""
    arm = ARMS[name]
    if arm.objective is None and not arm.seen:
        return None
    if arm.make_boxes is None:
        return true_file
    path = folder / f"boxes_{name}.json"
    if not path.is_file():
        file = read_box_file(true_file)
        save_boxes(path, arm.make_boxes(file.regions, source), file.frame)
    return path


def image_paths(data_path: Path, split: str = "train") -> Callable[[str], Path]:
    """The path of the image of a name, in CIRR's layout."""
    paths = read_image_split(data_path, split)
    return lambda name: data_path / paths[name]
