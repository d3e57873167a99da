"""Draws boxes: an image as it is stored, beside it the model's input frame, and many of these on one sheet."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lavis.datasets.region_boxes import Region
from sprc.core.errors import InputError
from sprc.core.files import atomic_writer
from sprc.data.images import MOST_PIXELS, naming_image, open_rgb

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#f032e6")
HEIGHT, MARGIN, TITLE = 336, 12, 20  # pixels of a picture's height, between pictures, and above them
MOST_WIDTH = 4 * HEIGHT  # of the picture of a raw image
MOST_LETTERS = 80  # of a name or a label
FRAME = 224  # side of the model's input frame


def draw_panel(name: str, path: Path, regions: list[Region], preprocess, patch_size: int) -> Image.Image:
    """The raw image and the input frame of one image, side by side under its name.

    `regions` are of the raw image; `preprocess` makes the frame, of side `FRAME`, and moves the boxes into it. Raises
    ImageError that names the image if it cannot be read.
    """
    with naming_image(name, path):
        raw = open_rgb(path)
        frame = preprocess.to_frame(raw)
    moved = preprocess.move_boxes([region.box for region in regions], *raw.size)
    left = raw.resize(picture_size(*raw.size))
    for number, region in enumerate(regions):
        draw_box(left, region.box, number, region)
    right = frame.resize((HEIGHT, HEIGHT))
    draw_grid(right, FRAME // patch_size)
    for number, box in zip(moved.kept, moved.boxes.tolist(), strict=True):
        draw_box(right, box, number, regions[number])
    panel = Image.new("RGB", (left.width + MARGIN // 2 + HEIGHT, TITLE + HEIGHT), "white")
    panel.paste(left, (0, TITLE))
    panel.paste(right, (left.width + MARGIN // 2, TITLE))
    dropped = f", {moved.dropped} too small in the frame" if moved.dropped else ""
    count = f"{len(regions)} box" + ("" if len(regions) == 1 else "es")
    title = f"{name[:MOST_LETTERS]}  {raw.width} x {raw.height}, {count}{dropped}"
    ImageDraw.Draw(panel).text((2, 3), title, fill="black", font=ImageFont.load_default(13))
    return panel


def picture_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) of the picture of a raw image: `HEIGHT` high, or lower if it would be too wide."""
    scale = min(HEIGHT / height, MOST_WIDTH / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def draw_grid(frame: Image.Image, cells: int) -> None:
    """The patch grid of the ViT over the input frame."""
    draw = ImageDraw.Draw(frame, "RGBA")
    for line in range(1, cells):
        place = round(line * frame.width / cells)
        draw.line([(place, 0), (place, frame.height)], fill=(255, 255, 255, 110))
        draw.line([(0, place), (frame.width, place)], fill=(255, 255, 255, 110))


def draw_box(picture: Image.Image, box, number: int, region: Region) -> None:
    """A box xyxy in [0, 1] of the picture, with its number, and its label and score if it has them."""
    draw, colour = ImageDraw.Draw(picture), COLOURS[number % len(COLOURS)]
    x1, y1, x2, y2 = (value * side for value, side in zip(box, picture.size * 2, strict=True))
    draw.rectangle([x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)], outline=colour, width=3)
    score = "" if region.score is None else f" {region.score:.2f}"
    text, font = f"{number + 1} {(region.label or '')[:MOST_LETTERS]}".strip() + score, ImageFont.load_default(13)
    where = draw.textbbox((x1 + 3, y1 + 2), text, font=font)
    draw.rectangle([where[0] - 2, where[1] - 1, where[2] + 2, where[3] + 1], fill=colour)
    draw.text((x1 + 3, y1 + 2), text, fill="white", font=font)


def contact_sheet(panels: list[Image.Image], columns: int) -> Image.Image:
    """All panels in rows of `columns`. Raises InputError if that is larger than an image may be."""
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    width = max(sum(panel.width + MARGIN for panel in row) for row in rows) + MARGIN
    height = len(rows) * (TITLE + HEIGHT + MARGIN) + MARGIN
    sheet = blank_sheet(width, height, "lower --max-images or --columns")
    for i, row in enumerate(rows):
        x = MARGIN
        for panel in row:
            sheet.paste(panel, (x, MARGIN + i * (TITLE + HEIGHT + MARGIN)))
            x += panel.width + MARGIN
    return sheet


def blank_sheet(width: int, height: int, fix: str) -> Image.Image:
    """A white picture. Raises InputError, with the fix, if that is larger than an image may be."""
    if width * height > MOST_PIXELS:
        raise InputError(f"the sheet would have {width} x {height} pixels: {fix}")
    return Image.new("RGB", (width, height), "white")


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture. Raises InputError as `atomic_writer`."""
    with atomic_writer(path) as file:
        picture.save(file, "PNG")


def bounded(panels: Iterable[Image.Image], fix: str) -> list[Image.Image]:
    """All panels. Raises InputError, with the fix, as soon as they are more than a sheet may have: before they fill the
    memory.
    """
    drawn: list[Image.Image] = []
    pixels = 0
    for panel in panels:
        pixels += panel.width * panel.height
        if pixels > MOST_PIXELS:
            raise InputError(f"more than {len(drawn)} of these pictures are too many for a sheet: {fix}")
        drawn.append(panel)
    return drawn
