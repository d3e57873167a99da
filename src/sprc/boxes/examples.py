"""Boxes that know nothing of an image: random ones, and a grid."""

import random

from lavis.datasets.region_boxes import Region
from sprc.boxes.sizes import largest_first


def random_boxes(count: int, rng: random.Random) -> list[Region]:
    """Boxes of a tenth to a half of the image's sides, xyxy in [0, 1] of the raw image, largest first."""
    regions = []
    for _ in range(count):
        width, height = rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5)
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        regions.append(Region((left, top, min(1.0, left + width), min(1.0, top + height))))
    return largest_first(regions)


def grid_boxes(side: int) -> list[Region]:
    """`side` x `side` boxes that cover the image, row by row, xyxy in [0, 1] of the raw image."""
    places = [(column / side, row / side) for row in range(side) for column in range(side)]
    return [Region((x, y, min(1.0, x + 1 / side), min(1.0, y + 1 / side))) for x, y in places]
