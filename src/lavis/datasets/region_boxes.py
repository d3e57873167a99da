"""The box file: `{"image name": [box, ...]}`, boxes xyxy in [0, 1] of the raw image. Load, validate, save.

A box is `[x1, y1, x2, y2]`, or an object `{"box": [...], "label": text, "score": number}` whose last two may be absent.
A label may be the whole number of a class. The entry `"__frame__": "stored"` says that boxes are of the pixels as they
are stored, before any EXIF orientation: `save_boxes` writes it, and older files lack it.
"""

import json
import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sprc.core.errors import InputError, shown
from sprc.core.files import read_json, write_atomically

logger = logging.getLogger(__name__)

FIX = "make it with roi_align_integration/tools, or correct it"
FRAME_KEY, STORED = "__frame__", "stored"
ROUNDING = 1e-4  # a value so far outside [0, 1] is clipped: it comes from numbers of few digits


@dataclass(frozen=True, slots=True)
class Region:
    """One region of an image: `box` is (x1, y1, x2, y2) in [0, 1] of the raw image's width and height."""

    box: tuple[float, float, float, float]
    label: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class BoxFile:
    """What a box file holds: the regions of every image, in file order.

    `frame` is `STORED`, or None if the file does not say it; `clipped` counts boxes a rounding outside [0, 1].
    """

    path: Path
    regions: dict[str, list[Region]]
    frame: str | None
    clipped: int


def load_boxes(path: str | Path) -> dict[str, list[Region]]:
    """The regions of every image of a box file, in file order. Raises InputError as `read_box_file`."""
    return read_box_file(path).regions


def read_box_file(path: str | Path) -> BoxFile:
    """A box file, whose boxes a rounding (`ROUNDING`) outside [0, 1] are clipped.

    Raises InputError that names the file, the image and the box: missing file, malformed JSON, an entry that is no list
    of boxes, NaN, a value outside [0, 1], pixel coordinates, a box without width or height, or another frame.
    """
    path = Path(path)
    entries = read_json(path, dict, FIX)
    is_marked = FRAME_KEY in entries
    frame = entries.pop(FRAME_KEY, None)
    if is_marked and frame != STORED:
        raise InputError(
            f'{path}: "{FRAME_KEY}" is {shown(frame)}: boxes are read in the frame "{STORED}" alone, that of the pixels'
            " before any EXIF orientation; make the file again with roi_align_integration/tools"
        )
    regions = {name: _read_regions(of_image, path, name) for name, of_image in entries.items()}
    clipped = sum(_is_outside(entry) for of_image in entries.values() for entry in of_image)
    return BoxFile(path, regions, frame, clipped)


def _read_regions(entries, path: Path, name: str) -> list[Region]:
    if not isinstance(entries, list):
        raise InputError(f"{path}: image {name!r} has {shown(entries)}; write a list of boxes, [] for none")
    return [_read_region(entry, path, name, number) for number, entry in enumerate(entries)]


def _read_region(entry, path: Path, name: str, number: int) -> Region:
    box, label, score = entry, None, None
    if isinstance(entry, dict):
        box, label, score = entry.get("box"), entry.get("label"), entry.get("score")
    problem = box_problem(box) or _extra_problem(label, score)
    if problem:
        raise InputError(f"{path}: image {name!r}, box {number} is {shown(entry)}: {problem}")
    return Region(_clipped(box), None if label is None else str(label), score)


def _clipped(box) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(min(1, max(0, value))) for value in box)
    return left, top, right, bottom


def _is_outside(entry) -> bool:
    """Whether an entry has a value outside [0, 1], and needs clipping."""
    box = entry["box"] if isinstance(entry, dict) else entry
    return min(box) < 0 or max(box) > 1


def box_problem(box) -> str | None:
    """What is wrong with a raw box, and the fix; None if nothing is wrong."""
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        return "write four numbers, [x1, y1, x2, y2]"
    if not all(-ROUNDING <= value <= 1 + ROUNDING for value in box):  # NaN fails every comparison
        if max(box) > 2:
            return "these look like pixels: divide by the width and height of the raw image"
        return "a value is NaN or outside [0, 1] of the raw image"
    x1, y1, x2, y2 = _clipped(box)
    if x2 <= x1 or y2 <= y1:
        return "x2 must be above x1, and y2 above y1"
    return None


def _extra_problem(label, score) -> str | None:
    if label is not None and type(label) not in (str, int):  # the type of True is neither
        return "label must be a text, or the whole number of a class"
    if score is not None and (type(score) not in (int, float) or not abs(score) <= sys.float_info.max):
        return "score must be a number, neither NaN nor infinite"
    return None


def regions_of(file: BoxFile, names: Iterable[str], title: str) -> dict[str, list[Region]]:
    """The regions of `names` out of a box file. `title` says whose names they are. A summary of one line is logged.

    Raises InputError if the file shares no name with `names`.
    """
    path, boxes = file.path, file.regions
    known = list(dict.fromkeys(names))
    found = {name: boxes[name] for name in known if name in boxes}
    if not found:
        raise InputError(
            f"{path} shares no image name with {title}: it has names like {list(boxes)[:2]}, which has names like"
            f" {known[:2]}; make the box file for this split"
        )
    bare = sum(not regions for regions in found.values())
    total = sum(map(len, found.values()))
    clipped = f"; {file.clipped} boxes of the file, a rounding outside [0, 1], are clipped" if file.clipped else ""
    logger.info(
        f"boxes: {total} regions for {len(found)} of {len(known)} images of {title}; {bare} have none,"
        f" {len(known) - len(found)} are not in {path}{clipped}"
    )
    return found


def save_boxes(path: str | Path, boxes: dict[str, list[Region]], frame: str | None = STORED) -> None:
    """Write a box file; a region without label and score becomes a plain list. `frame` is that of `BoxFile`.

    As in `read_box_file`, boxes a rounding outside [0, 1] are clipped, and the number of a class becomes a text.
    Raises InputError for a wrong box, and for an image that has the name of the frame's entry.
    """
    path = Path(path)
    if FRAME_KEY in boxes:
        raise InputError(f"{path}: {FRAME_KEY!r} is no name for an image: rename it")
    entries: dict[str, str | list] = {} if frame is None else {FRAME_KEY: frame}
    for name, regions in boxes.items():
        entries[name] = [_entry(region) for region in _read_regions([_entry(region) for region in regions], path, name)]
    write_atomically(path, json.dumps(entries))


def _entry(region: Region):
    extras = {"label": region.label, "score": region.score}
    given = {name: value for name, value in extras.items() if value is not None}
    return {"box": list(region.box), **given} if given else list(region.box)
