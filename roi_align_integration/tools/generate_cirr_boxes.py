"""Make box files: for the splits of a dataset in CIRR's layout, or for a plain folder of images."""

import argparse
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from io import FileIO
from itertools import islice
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "src"))

from sprc.core import interrupts  # noqa: E402

if __name__ == "__main__":
    interrupts.end_at_once()  # while the packages below load

from PIL import Image  # noqa: E402
from saliency_boxes import boxes_of_file  # noqa: E402
from tqdm import tqdm  # noqa: E402
from yolo_boxes import DEFAULT_WEIGHTS, Detector  # noqa: E402

from lavis.datasets.region_boxes import STORED, Region, save_boxes  # noqa: E402
from sprc.core.command_line import HelpFormatter, non_negative_int, positive_int, run_main, user_path  # noqa: E402
from sprc.core.errors import ImageError, InputError  # noqa: E402
from sprc.core.files import atomic_writer, held_file, read_bytes, unwritable, write_atomically  # noqa: E402
from sprc.core.reading import parse_json  # noqa: E402
from sprc.data.image_files import folder_images  # noqa: E402
from sprc.data.images import NOT_APPLIED, is_tagged, open_rgb, orientations  # noqa: E402

DATA = REPOSITORY / "roi_align_integration" / "data"
SPLITS = ("train", "val", "test1")


@dataclass(frozen=True)
class BoxSettings:
    """What fixes the boxes of an image."""

    method: str
    confidence: float
    min_area: float
    max_boxes: int
    yolo_weights: str

    def recipe(self) -> dict:
        """The settings that the method reads."""
        of_yolo = ("confidence", "yolo_weights") if self.method == "saliency" else ()
        return {name: value for name, value in asdict(self).items() if name not in of_yolo}


@dataclass(frozen=True)
class Found:
    """The boxes of one image and what made them, or the reason why the image could not be read."""

    name: str
    regions: list[Region]
    method: str
    error: str = ""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--cirr-root", type=user_path, default=REPOSITORY / "cirr_dataset", help="folder of the dataset"
    )
    source.add_argument("--images", type=user_path, metavar="FOLDER", help="a plain folder; a name is a file's stem")
    parser.add_argument("--method", choices=("yolo", "saliency", "hybrid"), default="saliency",
                        help="hybrid: saliency where YOLO finds nothing")  # fmt: skip
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
    parser.add_argument("--confidence", type=float, default=0.25, help="YOLO: lowest score of an object")
    parser.add_argument(
        "--min-area", type=float, default=0.005, help="smallest area of a box, as a part of the image's"
    )
    parser.add_argument("--max-boxes", type=positive_int, default=5, help="most boxes of an image, the largest first")
    parser.add_argument("--yolo-weights", type=user_path, default=DEFAULT_WEIGHTS, help="weight file of YOLO")
    parser.add_argument("--device", default="auto", help="YOLO: auto, cpu, cuda or cuda:N")
    parser.add_argument("--batch-size", type=positive_int, default=32, help="YOLO: images at a time")
    parser.add_argument("--num-workers", type=non_negative_int, default=2, help="processes, or for YOLO threads")
    return parser


def main(argv: list[str] | None = None) -> list[Path]:
    """Make every file that is asked for; returns their paths. Raises InputError where something is missing or wrong."""
    args = build_parser().parse_args(argv)
    _check_ranges(args)
    settings = BoxSettings(args.method, args.confidence, args.min_area, args.max_boxes, str(args.yolo_weights))
    detector = Detector(args.yolo_weights, args.device) if args.method != "saliency" else None
    paths = []
    for title, images, output in _sources(args):
        if args.max_images is not None:
            images = dict(list(images.items())[: args.max_images])
        make_box_file(title, images, output, settings, detector, args)
        paths.append(output)
    return paths


def _check_ranges(args: argparse.Namespace) -> None:
    for name in ("confidence", "min_area"):
        if not 0 <= getattr(args, name) <= 1:
            raise InputError(f"--{name.replace('_', '-')} is a part, 0 to 1, not {getattr(args, name)}")


def _sources(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Path], Path]]:
    """(title, name -> image file, box file) of everything that is asked for."""
    if args.images is not None:
        if args.all_splits:
            raise InputError("--all-splits is for a dataset in CIRR's layout, not for --images")
        yield str(args.images), folder_images(args.images), args.output or DATA / f"boxes_{args.images.name}.json"
        return
    from data_utils import CIRRDataset, read_image_split  # heavy: torch

    if args.max_triplets is not None and (args.split != "train" or args.all_splits):
        raise InputError("--max-triplets is for --split train")
    for split in SPLITS if args.all_splits else (args.split,):
        name = f"cirr_boxes_{split}.json"
        output = (args.output or DATA) / name if args.all_splits else args.output or DATA / name
        places = read_image_split(args.cirr_root, split)
        if args.max_triplets is not None:
            triplets = CIRRDataset(split, "relative", None, data_path=args.cirr_root).triplets[: args.max_triplets]
            used = {entry[key] for entry in triplets for key in ("reference", "target_hard")}
            places = {name: place for name, place in places.items() if name in used}
        yield f"CIRR {split}", {n: args.cirr_root / place for n, place in places.items()}, output


def make_box_file(title: str, images: dict[str, Path], output: Path, settings: BoxSettings, detector, args) -> None:
    """Make one box file; goes on where an interrupted run stopped. Prints a table.

    A second process that makes it at the same time waits, and finds it there.
    """
    # The frame is named, since a file without it may be of a tool that turned images by their EXIF orientation.
    recipe = json.dumps(settings.recipe() | {"images": fingerprint(images), "frame": STORED}, sort_keys=True)
    if not args.overwrite and _is_made(output, recipe):  # also on a disk that can be read alone
        return
    with held_file(output, wait=True):
        if not args.overwrite and _is_made(output, recipe):
            return
        if output.is_file() and not args.overwrite:
            raise InputError(
                f"{output} is there, but not made in this way of these images: --overwrite replaces it, --output names"
                " another"
            )
        _make_box_file(title, images, output, recipe, settings, detector, args)


def _made(output: Path) -> Path:
    """Where the recipe of a box file is kept."""
    return output.with_name(output.name + ".made")


def _is_made(output: Path, recipe: str) -> bool:
    """Whether a box file of this recipe is there."""
    made = _made(output)
    found = output.is_file() and made.is_file() and read_bytes(made, "remove it") == recipe.encode()
    if found:
        print(f"{output} is there, made in this way of these images")
    return found


def _make_box_file(
    title: str, images: dict[str, Path], output: Path, recipe: str, settings: BoxSettings, detector, args
) -> None:
    start = time.perf_counter()
    progress = output.with_name(output.name + ".progress")
    found = read_progress(progress, recipe)
    found = {name: entry for name, entry in found.items() if name in images}
    if found:
        print(f"{title}: {len(found)} of {len(images)} images are done already")
    resumed = len(found)
    rest = {name: path for name, path in images.items() if name not in found}
    with progress.open("ab", buffering=0) as file, tqdm(total=len(rest), desc=title, dynamic_ncols=True) as bar:
        for entry in find_boxes(rest, settings, detector, args):
            found[entry.name] = entry
            _write_line(file, json.dumps(asdict(entry)), progress)
            if entry.error:
                tqdm.write(f"image {entry.name!r} at {images[entry.name]} left out: {entry.error}", file=sys.stderr)
            bar.update()
    whole = {name: found[name].regions for name in images if not found[name].error}
    save_boxes(output, whole)
    write_atomically(_made(output), recipe)
    progress.unlink()
    print_table(title, list(found.values()), output, time.perf_counter() - start, len(found) - resumed)
    tagged = sum(map(is_tagged, orientations(images.values())))
    if tagged:
        print(f"{title}: {tagged} of {len(images)} images carry an EXIF orientation. {NOT_APPLIED}", flush=True)


def _write_line(file: FileIO, line: str, path: Path) -> None:
    rest = line.encode() + b"\n"
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise unwritable(path, error) from error


def fingerprint(images: dict[str, Path]) -> str:
    """SHA-256 of names and sizes: the same for a copy, another one for other images under the same names."""
    digest = hashlib.sha256()
    for name, path in images.items():
        digest.update(f"{name}\n{os.path.getsize(path) if os.path.isfile(path) else 'missing'}\n".encode())
    return digest.hexdigest()


def read_progress(path: Path, recipe: str) -> dict[str, Found]:
    """What an interrupted run has found, where it was made in the same way; else the file is begun anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = read_bytes(path, "remove it").split(b"\n") if path.is_file() else []
    if not lines or lines[0] != recipe.encode():
        write_atomically(path, recipe + "\n")
        return {}
    found = {}
    for number, line in enumerate(lines[1:-1], start=2):
        try:
            entry = parse_json(line, f"{path}, line {number},", "remove the file")
            found[entry["name"]] = Found(**entry | {"regions": [Region(**region) for region in entry["regions"]]})
        except (KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number} is not the boxes of an image: remove the file") from error
    # What stands behind the last line break is a line that was cut off.
    with atomic_writer(path) as file:
        file.writelines(line + b"\n" for line in lines[:-1])
    return found


def find_boxes(images: dict[str, Path], settings: BoxSettings, detector, args) -> Iterator[Found]:
    """The boxes of every image, in order."""
    if detector is not None:
        yield from _detected(images, settings, detector, args)
        return
    work = partial(boxes_of_file, min_area=settings.min_area, max_boxes=settings.max_boxes)
    if args.num_workers == 0:
        yield from (_found(name, work(path), "saliency") for name, path in images.items())
        return
    with ProcessPoolExecutor(args.num_workers, initializer=interrupts.leave_interrupts_to_parent) as pool:
        answers = pool.map(work, images.values(), chunksize=16)
        yield from (_found(name, answer, "saliency") for name, answer in zip(images, answers, strict=True))


def _found(name: str, answer: list[Region] | str, method: str) -> Found:
    return Found(name, [], method, answer) if isinstance(answer, str) else Found(name, answer, method)


def _detected(images: dict[str, Path], settings: BoxSettings, detector, args) -> Iterator[Found]:
    """YOLO's boxes, a batch at a time, images read by threads; for `hybrid`, saliency where there are none."""
    with ThreadPoolExecutor(max(1, args.num_workers)) as pool:
        for batch in _batches(images, args.batch_size):
            opened = list(pool.map(_open_image, [path for _, path in batch]))
            good = [image for image in opened if isinstance(image, Image.Image)]
            answers = iter(
                detector.detect(good, settings.confidence, settings.min_area, settings.max_boxes) if good else []
            )
            for (name, path), image in zip(batch, opened, strict=True):
                if isinstance(image, str):
                    yield Found(name, [], "yolo", image)
                    continue
                regions = next(answers)
                if regions or settings.method == "yolo":
                    yield Found(name, regions, "yolo")
                else:
                    yield _found(name, boxes_of_file(path, settings.min_area, settings.max_boxes), "saliency")


def _batches(images: dict[str, Path], size: int) -> Iterator[list[tuple[str, Path]]]:
    items = iter(images.items())
    while batch := list(islice(items, size)):
        yield batch


def _open_image(path: Path) -> Image.Image | str:
    try:
        return open_rgb(path)
    except ImageError as error:
        return str(error)


def print_table(title: str, found: list[Found], output: Path, seconds: float, done_now: int) -> None:
    good = [entry for entry in found if not entry.error]
    boxes, methods = sum(len(e.regions) for e in good), Counter(e.method for e in good if e.regions)
    rows = {
        "images": len(found),
        "left out, broken": len(found) - len(good),
        "without a box": sum(not e.regions for e in good),
        "boxes": boxes,
        "boxes per image": f"{boxes / max(1, len(good)):.2f}",
        **{f"images with boxes by {method}": count for method, count in sorted(methods.items())},
        "seconds": f"{seconds:.1f}",
        "images per second": f"{done_now / max(seconds, 1e-9):.0f}",
        "file": output,
    }
    width = max(map(len, rows))
    print(f"{title}:\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items()), flush=True)


if __name__ == "__main__":
    run_main(main)
