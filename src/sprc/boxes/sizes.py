"""Areas of boxes, and regions in the order of a box file: the largest first."""

from collections.abc import Iterable

from lavis.datasets.region_boxes import Region


def box_area(box: tuple[float, float, float, float]) -> float:
    """The area of a box xyxy, in the square of its own unit."""
    return (box[2] - box[0]) * (box[3] - box[1])


def largest_first(regions: Iterable[Region]) -> list[Region]:
    """The regions by the area of their boxes, falling; equal ones keep their order."""
    return sorted(regions, key=lambda region: -box_area(region.box))
