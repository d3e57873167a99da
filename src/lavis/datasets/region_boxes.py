"""The box file: `{"image name": [box, ...]}`, boxes xyxy in [0, 1] of the raw image. Load, validate, save.

A box is `[x1, y1, x2, y2]`, or an object `{"box": [...], "label": text, "score": number}` whose last two may be absent.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lavis.common.errors import InputError
from lavis.common.files import read_json, write_atomically

CURE = "make it with roi_align_integration/tools, or correct it"


@dataclass(frozen=True, slots=True)
class Region:
    """One region of an image: `box` is (x1, y1, x2, y2) in [0, 1] of the raw image's width and height."""

    box: tuple[float, float, float, float]
    label: str | None = None
    score: float | None = None


def load_boxes(path: str | Path) -> dict[str, list[Region]]:
    """The regions of every image of a box file, in file order.

    Raises InputError that names the file, the image and the box: missing file, malformed JSON, an entry that is no list
    of boxes, NaN, a value outside [0, 1], pixel coordinates, or a box without width or height.
    """
    path = Path(path)
    entries = read_json(path, dict, CURE)
    return {name: _read_regions(regions, path, name) for name, regions in entries.items()}


def _read_regions(entries, path: Path, name: str) -> list[Region]:
    if not isinstance(entries, list):
        raise InputError(f"{path}: image {name!r} has {entries!r}; write a list of boxes, [] for none")
    return [_read_region(entry, path, name, number) for number, entry in enumerate(entries)]


def _read_region(entry, path: Path, name: str, number: int) -> Region:
    box, label, score = entry, None, None
    if isinstance(entry, dict):
        box, label, score = entry.get("box"), entry.get("label"), entry.get("score")
    problem = box_problem(box) or _extra_problem(label, score)
    if problem:
        raise InputError(f"{path}: image {name!r}, box {number} is {entry!r}: {problem}")
    return Region(tuple(map(float, box)), label, score)


def box_problem(box) -> str | None:
    """What is wrong with a raw box, and its cure; None where nothing is."""
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        return "write four numbers, [x1, y1, x2, y2]"
    x1, y1, x2, y2 = box
    if not all(0 <= value <= 1 for value in box):  # NaN fails every comparison
        if max(box) > 2:
            return "these look like pixels: divide by the width and height of the raw image"
        return "a value is NaN or outside [0, 1] of the raw image"
    if x2 <= x1 or y2 <= y1:
        return "x2 must be above x1, and y2 above y1"
    return None


def _extra_problem(label, score) -> str | None:
    if label is not None and not isinstance(label, str):
        return "label must be a text"
    if score is not None and type(score) not in (int, float):
        return "score must be a number"
    return None


def regions_of(path: str | Path, names: Iterable[str], title: str) -> dict[str, list[Region]]:
    """The regions of `names` out of a box file; a one-line summary is printed. `title` says whose names they are.

    Raises InputError as `load_boxes`, and where the file shares no name with `names`.
    """
    boxes = load_boxes(path)
    known = list(dict.fromkeys(names))
    found = {name: boxes[name] for name in known if name in boxes}
    if not found:
        raise InputError(
            f"{path} shares no image name with {title}: it has names like {list(boxes)[:2]}, which has names like"
            f" {known[:2]}; make the box file for this split"
        )
    bare = sum(not regions for regions in found.values())
    total = sum(map(len, found.values()))
    print(
        f"boxes: {total} regions for {len(found)} of {len(known)} images of {title}; {bare} have none,"
        f" {len(known) - len(found)} are not in {path}",
        flush=True,
    )
    return found


def save_boxes(path: str | Path, boxes: dict[str, list[Region]]) -> None:
    """Write a box file; plain lists where a region has neither label nor score. Raises InputError for a wrong box."""
    path = Path(path)
    entries = {}
    for name, regions in boxes.items():
        entries[name] = [_entry(region) for region in regions]
        _read_regions(entries[name], path, name)
    write_atomically(path, json.dumps(entries))


def _entry(region: Region):
    extras = {"label": region.label, "score": region.score}
    given = {name: value for name, value in extras.items() if value is not None}
    return {"box": list(region.box), **given} if given else list(region.box)
