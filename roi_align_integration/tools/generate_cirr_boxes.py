"""Make box files: for the splits of a dataset in CIRR's layout, or for a plain folder of images."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from sprc.core import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()  # while the packages below load

from sprc.boxes.box_files import make_box_file
from sprc.boxes.detection import METHODS, BoxFinder, BoxSettings
from sprc.boxes.yolo import DEFAULT_WEIGHTS, Detector
from sprc.core.command_line import HelpFormatter, non_negative_int, positive_int, run_main, user_path
from sprc.core.errors import InputError
from sprc.core.places import REPOSITORY
from sprc.data.image_files import folder_images

DATA = REPOSITORY / "roi_align_integration" / "data"
SPLITS = ("train", "val", "test1")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_source_flags(parser)
    add_box_flags(parser)
    return parser


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Which images, and where their boxes go."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--cirr-root", type=user_path, default=REPOSITORY / "cirr_dataset", help="folder of the dataset"
    )
    source.add_argument("--images", type=user_path, metavar="FOLDER", help="a plain folder; a name is a file's stem")
    parser.add_argument("--method", choices=METHODS, default="saliency", help="hybrid: saliency if YOLO finds nothing")
    parser.add_argument("--split", choices=SPLITS, default="train", help="of the dataset")
    parser.add_argument("--all-splits", action="store_true", help="one file for each split; --output is their folder")
    parser.add_argument(
        "--max-triplets", type=positive_int, help="of the dataset's train split: the images of the first so many"
    )
    parser.add_argument("--max-images", type=positive_int, help="only the first so many")
    parser.add_argument(
        "--output", type=user_path, help="box file (default: roi_align_integration/data/cirr_boxes_<split>.json)"
    )
    parser.add_argument("--overwrite", action="store_true", help="make a box file again that is there")


def add_box_flags(parser: argparse.ArgumentParser) -> None:
    """Which boxes, and how they are computed."""
    defaults = BoxSettings()
    parser.add_argument("--confidence", type=float, default=defaults.confidence, help="YOLO: lowest score of an object")
    parser.add_argument(
        "--min-area", type=float, default=defaults.min_area, help="smallest area of a box, as a part of the image's"
    )
    parser.add_argument(
        "--max-boxes", type=positive_int, default=defaults.max_boxes, help="most boxes of an image, the largest first"
    )
    parser.add_argument("--yolo-weights", type=user_path, default=DEFAULT_WEIGHTS, help="weight file of YOLO")
    parser.add_argument("--device", default="auto", help="YOLO: auto, cpu, cuda or cuda:N")
    parser.add_argument("--batch-size", type=positive_int, default=32, help="YOLO: images at a time")
    parser.add_argument("--num-workers", type=non_negative_int, default=2, help="processes, or for YOLO threads")


def main(argv: list[str] | None = None) -> list[Path]:
    """Make every file that is asked for; returns their paths. Raises InputError if something is missing or wrong."""
    args = build_parser().parse_args(argv)
    check_ranges(args)
    settings = BoxSettings(args.method, args.confidence, args.min_area, args.max_boxes, str(args.yolo_weights))
    detector = Detector(args.yolo_weights, args.device) if args.method != "saliency" else None
    finder = BoxFinder(settings, detector, args.num_workers, args.batch_size)
    paths = []
    for title, images, output in sources(args):
        if args.max_images is not None:
            images = dict(list(images.items())[: args.max_images])
        make_box_file(title, images, output, finder, args.overwrite)
        paths.append(output)
    return paths


def check_ranges(args: argparse.Namespace) -> None:
    for name in ("confidence", "min_area"):
        if not 0 <= getattr(args, name) <= 1:
            raise InputError(f"--{name.replace('_', '-')} is a part, 0 to 1, not {getattr(args, name)}")


def sources(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Path], Path]]:
    """(title, name -> image file, box file) of everything that is asked for."""
    if args.images is not None:
        if args.all_splits:
            raise InputError("--all-splits is for a dataset in CIRR's layout, not for --images")
        yield str(args.images), folder_images(args.images), args.output or DATA / f"boxes_{args.images.name}.json"
        return
    if args.max_triplets is not None and (args.split != "train" or args.all_splits):
        raise InputError("--max-triplets is for --split train")
    for split in SPLITS if args.all_splits else (args.split,):
        name = f"cirr_boxes_{split}.json"
        output = (args.output or DATA) / name if args.all_splits else args.output or DATA / name
        yield f"CIRR {split}", split_images(args.cirr_root, split, args.max_triplets), output


def split_images(root: Path, split: str, max_triplets: int | None) -> dict[str, Path]:
    """Name -> file of the images of a split, or only of those of its first triplets."""
    from sprc.benchmarks.cirr import CIRR  # heavy: torch

    places = CIRR(root).image_paths(split)
    if max_triplets is not None:
        queries = CIRR(root).queries(split, places)[:max_triplets]
        used = {name for query in queries for name in (query.reference, query.target)}
        places = {name: place for name, place in places.items() if name in used}
    return {name: root / place for name, place in places.items()}


if __name__ == "__main__":
    run_main(main)
