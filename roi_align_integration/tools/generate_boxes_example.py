"""Make example box files: random boxes, a grid of boxes, or the exact boxes of the demo dataset."""

import argparse
import random
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "src"))

from lavis.datasets.region_boxes import Region, load_boxes, save_boxes  # noqa: E402
from sprc.core.command_line import HelpFormatter, positive_int, run_main, user_path  # noqa: E402
from sprc.core.errors import InputError  # noqa: E402

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
    """Write the file; returns its path. Raises InputError where the dataset, or its exact boxes, are missing."""
    args = build_parser().parse_args(argv)
    from data_utils import read_image_split  # heavy: torch

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


def random_boxes(count: int, rng: random.Random) -> list[Region]:
    """Boxes of a tenth to a half of the image's sides, largest first."""
    regions = []
    for _ in range(count):
        width, height = rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.5)
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        regions.append(Region((left, top, min(1.0, left + width), min(1.0, top + height))))
    return sorted(regions, key=lambda r: -(r.box[2] - r.box[0]) * (r.box[3] - r.box[1]))


def grid_boxes(side: int) -> list[Region]:
    """`side` x `side` boxes that cover the image."""
    places = [(column / side, row / side) for row in range(side) for column in range(side)]
    return [Region((x, y, min(1.0, x + 1 / side), min(1.0, y + 1 / side))) for x, y in places]


def exact_boxes(root: Path, split: str) -> dict[str, list[Region]]:
    """The boxes that the demo dataset was painted with."""
    path = root / "boxes" / f"cirr_boxes_{split}.json"
    if not path.is_file():
        raise InputError(f"no exact boxes at {path}: only a dataset of make_demo_dataset.py has them")
    return load_boxes(path)


if __name__ == "__main__":
    run_main(main)
