"""Pictures for the page: small copies of photographs, with a heat map and boxes drawn over them."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lavis.datasets.region_boxes import Region
from sprc.boxes.drawing import draw_box
from sprc.core.errors import ImageError
from sprc.data.images import open_small
from sprc.report.heat_maps import HeatMap, draw_heat_map
from sprc.retrieval.results import Result

SMALL, LARGE = 288, 900  # pixels of the longer side
EMPTY, GREY = "#d7dae0", "#5b6270"


def thumbnail(path: Path, side: int = SMALL) -> Image.Image:
    """A copy of a photograph of at most `side` pixels a side; of one that cannot be read, an empty picture says so."""
    try:
        return open_small(path, side)
    except ImageError:
        return _empty(side)


def draw_result(result: Result, side: int, heat: HeatMap | None, regions: Sequence[Region]) -> Image.Image:
    """The photograph of a result with its heat map, if there is one, and its regions; of at most `side` pixels a side.

    A photograph that cannot be read is an empty picture.
    """
    try:
        picture = open_small(result.path, side)
    except ImageError:
        return _empty(side)
    if heat is not None:
        picture = draw_heat_map(picture, heat, result.size)
    for number, region in enumerate(regions):
        draw_box(picture, region.box, number, region)
    return picture


def _empty(side: int) -> Image.Image:
    picture = Image.new("RGB", (side, side), EMPTY)
    where, font = (side / 2, side / 2), ImageFont.load_default(side / 16)
    ImageDraw.Draw(picture).text(where, "cannot be read any more", fill=GREY, font=font, anchor="mm")
    return picture
