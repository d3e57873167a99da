"""Make example box files: random boxes, a grid of boxes, or the exact boxes of the demo dataset."""

import argparse
import random
from pathlib import Path

from lavis.datasets.region_boxes import Region, load_boxes, save_boxes
from sprc.boxes.examples import grid_boxes, random_boxes
from sprc.core.command_line import HelpFormatter, positive_int, run_main, user_path
from sprc.core.errors import InputError
from sprc.core.places import REPOSITORY

DATA = REPOSITORY / "roi_align_integration" / "data"
SPLITS = ("train", "val", "test1")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--kind", choices=("random", "grid", "ground-truth"), default="random", help="which boxes")
    parser.add_argument("--cirr-root", type=user_path, default=DATA / "demo_dataset", help="dataset in CIRR's layout")
    parser.add_argument("--split", choices=SPLITS, default="train", help="of the dataset")
    parser.add_argument(
        "--boxes", type=positive_int, default=3, help="random: boxes of an image; grid: rows and columns"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same boxes")
    parser.add_argument(
        "--output", type=user_path, help="box file (default: roi_align_integration/data/example_<kind>.json)"
    )
    return parser


def main(argv: list[str] | None = None) -> Path:
    """Write the file; returns its path. Raises InputError if the dataset, or its exact boxes, are missing."""
    args = build_parser().parse_args(argv)
    from sprc.benchmarks.cirr import read_image_split  # heavy: torch

    names = list(read_image_split(args.cirr_root, args.split))
    if args.kind == "ground-truth":
        boxes = exact_boxes(args.cirr_root, args.split)
    elif args.kind == "grid":
        boxes = dict.fromkeys(names, grid_boxes(args.boxes))
    else:
        boxes = {name: random_boxes(args.boxes, random.Random(f"{args.seed}/{name}")) for name in names}
    output = args.output or DATA / f"example_{args.kind}.json"
    save_boxes(output, boxes)
    print(f"{sum(map(len, boxes.values()))} boxes of {len(boxes)} images: {output}")
    return output


def exact_boxes(root: Path, split: str) -> dict[str, list[Region]]:
    """The boxes that the demo dataset was painted with."""
    path = root / "boxes" / f"cirr_boxes_{split}.json"
    if not path.is_file():
        raise InputError(f"no exact boxes at {path}: only a dataset of make_demo_dataset.py has them")
    return load_boxes(path)


if __name__ == "__main__":
    run_main(main)
