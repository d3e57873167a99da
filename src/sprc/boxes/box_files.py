"""Makes a box file of many images: once, by one process at a time, and after an interruption from there on."""

import hashlib
import json
import logging
import os
import sys
import time
from collections import Counter
from dataclasses import asdict
from io import FileIO
from pathlib import Path

from tqdm import tqdm

from lavis.datasets.region_boxes import STORED, Region, save_boxes
from sprc.boxes.detection import BoxFinder, Found
from sprc.core.errors import InputError
from sprc.core.files import atomic_writer, held_file, read_bytes, unwritable, write_atomically
from sprc.core.reading import parse_json
from sprc.data.images import NOT_APPLIED, is_tagged, orientations

logger = logging.getLogger(__name__)


def make_box_file(title: str, images: dict[str, Path], output: Path, finder: BoxFinder, overwrite: bool) -> None:
    """Make the box file `output` of the images, name -> file, and log a table; `title` names them.

    Continues from where an interrupted run stopped. If a second process makes the same file at the same time, it waits,
    and finds the file there.

    Raises:
        InputError: `output` is there and was made in another way or of other images, and `overwrite` is False; or a
            file cannot be read or written.
    """
    # The frame is named, since a file without it may be of a tool that turned images by their EXIF orientation.
    recipe = json.dumps(finder.settings.recipe() | {"images": fingerprint(images), "frame": STORED}, sort_keys=True)
    if not overwrite and _is_made(output, recipe):  # also on a disk that can only be read
        return
    with held_file(output, wait=True):
        if not overwrite and _is_made(output, recipe):
            return
        if output.is_file() and not overwrite:
            raise InputError(
                f"{output} is there, but not made in this way of these images: --overwrite replaces it, --output names"
                " another"
            )
        _make_box_file(title, images, output, recipe, finder)


def fingerprint(images: dict[str, Path]) -> str:
    """SHA-256 of names and sizes: the same for a copy, another one for other images under the same names."""
    digest = hashlib.sha256()
    for name, path in images.items():
        digest.update(f"{name}\n{os.path.getsize(path) if os.path.isfile(path) else 'missing'}\n".encode())
    return digest.hexdigest()


def _made(output: Path) -> Path:
    """The file that keeps the recipe of a box file."""
    return output.with_name(output.name + ".made")


def _is_made(output: Path, recipe: str) -> bool:
    """Whether a box file of this recipe is there."""
    made = _made(output)
    found = output.is_file() and made.is_file() and read_bytes(made, "remove it") == recipe.encode()
    if found:
        logger.info(f"{output} is there, made in this way of these images")
    return found


def _make_box_file(title: str, images: dict[str, Path], output: Path, recipe: str, finder: BoxFinder) -> None:
    start = time.perf_counter()
    progress = output.with_name(output.name + ".progress")
    found = {name: entry for name, entry in read_progress(progress, recipe).items() if name in images}
    if found:
        logger.info(f"{title}: {len(found)} of {len(images)} images are done already")
    resumed = len(found)
    _find_the_rest(title, images, found, progress, finder)
    save_boxes(output, {name: found[name].regions for name in images if not found[name].error})
    write_atomically(_made(output), recipe)
    progress.unlink()
    print_table(title, list(found.values()), output, time.perf_counter() - start, len(found) - resumed)
    tagged = sum(map(is_tagged, orientations(images.values())))
    if tagged:
        logger.info(f"{title}: {tagged} of {len(images)} images carry an EXIF orientation. {NOT_APPLIED}")


def _find_the_rest(
    title: str, images: dict[str, Path], found: dict[str, Found], progress: Path, finder: BoxFinder
) -> None:
    """Add to `found` what it lacks, and to the progress file a line for each image."""
    rest = {name: path for name, path in images.items() if name not in found}
    with progress.open("ab", buffering=0) as file, tqdm(total=len(rest), desc=title, dynamic_ncols=True) as bar:
        for entry in finder.find(rest):
            found[entry.name] = entry
            _write_line(file, json.dumps(asdict(entry)), progress)
            if entry.error:
                tqdm.write(f"image {entry.name!r} at {images[entry.name]} left out: {entry.error}", file=sys.stderr)
            bar.update()


def _write_line(file: FileIO, line: str, path: Path) -> None:
    rest = line.encode() + b"\n"
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise unwritable(path, error) from error


def read_progress(path: Path, recipe: str) -> dict[str, Found]:
    """What an interrupted run of the same recipe has found, by name. Without one, the file is started again, empty.

    Raises InputError that names the line that is damaged.
    """
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
    # After the last line break there is nothing, or a line that was cut off.
    with atomic_writer(path) as file:
        file.writelines(line + b"\n" for line in lines[:-1])
    return found


def print_table(title: str, found: list[Found], output: Path, seconds: float, done_now: int) -> None:
    """Counts of images and boxes; the speed is that of the `done_now` images of this run."""
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
    logger.info(f"{title}:\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows.items()))
