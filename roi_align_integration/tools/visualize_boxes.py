"""Draw boxes on raw images, and beside each the model's input frame with its patch grid and the moved boxes."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "src"))

from lavis.datasets.region_boxes import Region, load_boxes  # noqa: E402
from sprc.core.command_line import HelpFormatter, positive_int, run_main, user_path  # noqa: E402
from sprc.core.errors import InputError  # noqa: E402
from sprc.core.files import atomic_writer  # noqa: E402
from sprc.data.image_files import folder_images  # noqa: E402
from sprc.data.images import MOST_PIXELS, naming_image, open_rgb  # noqa: E402

DEFAULT_OUTPUT = REPOSITORY / "roi_align_integration" / "data" / "boxes.png"
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#f032e6")
HEIGHT, MARGIN, TITLE = 336, 12, 20  # pixels of a picture's height, between pictures, and above them
MOST_WIDTH = 4 * HEIGHT  # of the picture of a raw image
MOST_LETTERS = 80  # of a name or a label
FRAME = 224  # side of the model's input frame


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--images", type=user_path, metavar="FOLDER", help="a folder of images; a name is a file's stem"
    )
    source.add_argument("--cirr-root", type=user_path, metavar="FOLDER", help="a dataset in CIRR's layout, see --split")
    parser.add_argument("--split", default="train", choices=("train", "val", "test1"), help="of CIRR")
    parser.add_argument("--box-file", type=user_path, required=True, help="JSON file of the boxes")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="draw these (default: the first that have boxes)")
    parser.add_argument("--max-images", type=positive_int, default=12, help="most images on the sheet")
    parser.add_argument("--columns", type=positive_int, default=2, help="images beside each other")
    parser.add_argument("--transform", choices=("targetpad", "squarepad"), default="targetpad", help="how it is padded")
    parser.add_argument("--target-ratio", type=float, default=1.25, help="of targetpad")
    parser.add_argument("--patch-size", type=positive_int, default=14, help="of the ViT, in pixels")
    parser.add_argument("--output", type=user_path, default=DEFAULT_OUTPUT, help="PNG to write")
    return parser


def main(argv: list[str] | None = None) -> Path:
    """Write the contact sheet; returns its path. Raises InputError where a file or a name is missing or wrong."""
    args = build_parser().parse_args(argv)
    if args.output.suffix.lower() != ".png":
        raise InputError(f"--output {args.output}: the sheet is a PNG file; give a name that ends in .png")
    from sprc.data.preprocess import build_preprocess  # heavy: torch

    preprocess = build_preprocess(args.transform, args.target_ratio, FRAME)
    boxes, paths = load_boxes(args.box_file), image_paths(args.images, args.cirr_root, args.split)
    names = args.names or [name for name in boxes if boxes[name] and name in paths]
    names = names[: args.max_images]
    unknown = [name for name in names if name not in paths or name not in boxes]
    if unknown or not names:
        raise InputError(f"{args.box_file} and the images share no {unknown[0] if unknown else 'name with boxes'}")
    panels = _bounded(draw_panel(name, paths[name], boxes[name], preprocess, args.patch_size) for name in names)
    sheet = contact_sheet(panels, args.columns)
    with atomic_writer(args.output) as file:
        sheet.save(file, "PNG")
    print(f"{len(panels)} images drawn: {args.output}")
    return args.output


def _bounded(panels: Iterator[Image.Image]) -> list[Image.Image]:
    """All panels. Raises InputError as soon as they are more than a sheet may have, before they fill the memory."""
    drawn, pixels = [], 0
    for panel in panels:
        pixels += panel.width * panel.height
        if pixels > MOST_PIXELS:
            raise InputError(f"more than {len(drawn)} of these images are too many for a sheet: lower --max-images")
        drawn.append(panel)
    return drawn


def image_paths(images: Path | None, cirr_root: Path | None, split: str) -> dict[str, Path]:
    """Name -> file, of a plain folder or of a split of CIRR."""
    if cirr_root is not None:
        from data_utils import CIRRDataset

        dataset = CIRRDataset(split, "classic", None, data_path=cirr_root)
        return {name: dataset.path_of(name) for name in dataset.names}
    return folder_images(images)


def draw_panel(name: str, path: Path, regions: list[Region], preprocess, patch_size: int) -> Image.Image:
    """The raw image and the input frame of one image, side by side under its name."""
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
    """A box xyxy in [0, 1] of the picture, with its number, and label and score where it has them."""
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
    if width * height > MOST_PIXELS:
        raise InputError(f"the sheet would have {width} x {height} pixels: lower --max-images or --columns")
    sheet = Image.new("RGB", (width, height), "white")
    for i, row in enumerate(rows):
        x = MARGIN
        for panel in row:
            sheet.paste(panel, (x, MARGIN + i * (TITLE + HEIGHT + MARGIN)))
            x += panel.width + MARGIN
    return sheet


if __name__ == "__main__":
    run_main(main)
