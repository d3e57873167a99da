"""One picture of a contact sheet: an image in a cell of fixed size, framed by its role, with what is said below it."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from PIL import Image, ImageDraw

from lavis.datasets.region_boxes import Region
from sprc.boxes.drawing import draw_box
from sprc.data.images import naming_image, open_rgb
from sprc.report.fonts import font_for, plain, shorten
from sprc.report.heat_maps import HeatMap, draw_heat_map

SIDE = 184  # pixels of a cell's width, and of the square in which the image with its frame stands
CELL = (SIDE, SIDE + 42)
INK, GREY = "#1f2328", "#6b7280"


class Role(Enum):
    """What an image is to its query -> the colour of its frame, and the frame's width in pixels."""

    REFERENCE = ("#2563eb", 3)
    TARGET = ("#16a34a", 5)
    OTHER = ("#c4c8cf", 1)


@dataclass(frozen=True)
class Picture:
    """An image with what is said of it.

    `title` and `detail` stand below it on one line, left and right, such as the rank and the score; `name` below them.
    `regions` are boxes of the raw image, in [0, 1]; `heat` is drawn over it.
    """

    path: Path
    name: str
    title: str = ""
    detail: str = ""
    role: Role = Role.OTHER
    heat: HeatMap | None = None
    regions: tuple[Region, ...] = ()


def draw_cell(picture: Picture) -> Image.Image:
    """The picture in a white cell of size `CELL`. Raises InputError that names the image if it cannot be read."""
    cell = Image.new("RGB", CELL, "white")
    image = _image(picture)
    colour, width = picture.role.value
    left, top = ((SIDE - side) // 2 for side in image.size)
    frame = (left - width, top - width, left + image.width + width - 1, top + image.height + width - 1)
    draw = ImageDraw.Draw(cell)
    draw.rectangle(frame, outline=colour, width=width)
    cell.paste(image, (left, top))
    _write_caption(draw, picture)
    return cell


def _image(picture: Picture) -> Image.Image:
    """The image at its size on the sheet, with heat and boxes: it leaves room for its frame."""
    with naming_image(picture.name, picture.path):
        raw = open_rgb(picture.path)
    scale = min((SIDE - 2 * picture.role.value[1]) / side for side in raw.size)
    width, height = (max(1, round(side * scale)) for side in raw.size)
    image = raw.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)
    if picture.heat is not None:
        image = draw_heat_map(image, picture.heat, raw.size)
    for number, region in enumerate(picture.regions):
        draw_box(image, region.box, number, region)
    return image


def _write_caption(draw: ImageDraw.ImageDraw, picture: Picture) -> None:
    title, detail, name = map(plain, (picture.title, picture.detail, picture.name))
    bold, regular, small = font_for(title, 14, bold=True), font_for(detail, 13), font_for(name, 12)
    room = SIDE - regular.getlength(detail) - (8 if detail else 0)
    colour = INK if picture.role is Role.OTHER else picture.role.value[0]
    draw.text((0, SIDE + 17), shorten(title, bold, room), fill=colour, font=bold, anchor="ls")
    draw.text((SIDE, SIDE + 17), detail, fill=INK, font=regular, anchor="rs")
    draw.text((0, SIDE + 35), shorten(name, small, SIDE), fill=GREY, font=small, anchor="ls")
