"""Draw boxes on raw images, and beside each the model's input frame with its patch grid and the moved boxes."""

import argparse
from pathlib import Path

from lavis.datasets.region_boxes import load_boxes
from sprc.boxes import drawing
from sprc.core.command_line import HelpFormatter, positive_int, require_png, run_main, user_path
from sprc.core.errors import InputError
from sprc.core.places import REPOSITORY
from sprc.data.image_files import folder_images

DEFAULT_OUTPUT = REPOSITORY / "roi_align_integration" / "data" / "boxes.png"


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
    """Write the contact sheet; returns its path. Raises InputError if a file or a name is missing or wrong."""
    args = build_parser().parse_args(argv)
    require_png(args.output, "the sheet")
    from sprc.data.preprocess import build_preprocess  # heavy: torch

    preprocess = build_preprocess(args.transform, args.target_ratio, drawing.FRAME)
    boxes, paths = load_boxes(args.box_file), image_paths(args.images, args.cirr_root, args.split)
    names = args.names or [name for name in boxes if boxes[name] and name in paths]
    names = names[: args.max_images]
    unknown = [name for name in names if name not in paths or name not in boxes]
    if unknown or not names:
        raise InputError(f"{args.box_file} and the images share no {unknown[0] if unknown else 'name with boxes'}")
    panels = drawing.bounded(
        (drawing.draw_panel(name, paths[name], boxes[name], preprocess, args.patch_size) for name in names),
        "lower --max-images",
    )
    sheet = drawing.contact_sheet(panels, args.columns)
    drawing.save_png(sheet, args.output)
    print(f"{len(panels)} images drawn: {args.output}")
    return args.output


def image_paths(images: Path | None, cirr_root: Path | None, split: str) -> dict[str, Path]:
    """Name -> file, of a plain folder or of a split of CIRR."""
    if cirr_root is not None:
        from data_utils import CIRRDataset

        dataset = CIRRDataset(split, "classic", None, data_path=cirr_root)
        return {name: dataset.path_of(name) for name in dataset.names}
    return folder_images(images)


if __name__ == "__main__":
    run_main(main)
