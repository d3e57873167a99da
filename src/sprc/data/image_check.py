"""Check that all images of a run exist and can be opened, before hours of work: one pass over folders and headers."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from sprc.core.errors import ImageError, InputError
from sprc.data.image_files import IMAGE_SUFFIXES, file_names
from sprc.data.image_set import ImageSet
from sprc.data.images import NOT_APPLIED, is_tagged, orientations

logger = logging.getLogger(__name__)

SHOWN = 3  # files named of each fault
MOST_REASONS = 5  # told apart in a dataset: a reason may hold a number that differs in every file


@dataclass(frozen=True)
class Fault:
    """What is wrong with files, and what to do about it."""

    what: str
    fix: str

    def told(self, places: list[str]) -> str:
        """The fault of these files; the first few are named."""
        return f"{self.what}, first {', '.join(places[:SHOWN])}: {self.fix}"


MISSING = Fault("are missing", "copy or download them again")
OTHERS = Fault("cannot be read for other reasons", "copy or download them again")


def check_images(*datasets: ImageSet) -> None:
    """Raise one InputError for all images of the datasets that are missing, or are no image by their header.

    Otherwise logs how many images carry an EXIF orientation.
    """
    problems, tagged = [], []
    for title, files in _files(datasets).items():
        faults, turned = _look_at(files)
        problems += [f"{_count(len(found), files, title)} {fault.told(found)}" for fault, found in faults.items()]
        if turned:
            tagged.append(_count(turned, files, title))
    if problems:
        roots = " and ".join(dict.fromkeys(str(dataset.root) for dataset in datasets))
        where = f"they belong under {roots}, and cirr_dataset/README.md says where they come from"
        raise InputError(f"{'; '.join(problems)}; {where}")
    if tagged:
        logger.warning(f"{' and '.join(tagged)} carry an EXIF orientation. {NOT_APPLIED}")


def _files(datasets: tuple[ImageSet, ...]) -> dict[str, dict[Path, str]]:
    """Title -> the files of all datasets of that title, each with its path below the root."""
    files: dict[str, dict[Path, str]] = {}
    for dataset in datasets:
        files.setdefault(dataset.title, {}).update(
            {dataset.path_of(name): dataset.image_paths[name] for name in dataset.names}
        )
    return files


def _look_at(files: dict[Path, str]) -> tuple[dict[Fault, list[str]], int]:
    """({fault: places of the files}, how many carry an EXIF orientation)."""
    faults: dict[Fault, list[str]] = {}
    listed = {folder: file_names(folder) for folder in dict.fromkeys(path.parent for path in files)}
    present = {folder: set(names) for folder, names in listed.items()}
    there = [path for path in files if path.name in present[path.parent]]
    missing = [path for path in files if path.name not in present[path.parent]]
    if missing:
        others = {folder: _by_stem(folder, names, files) for folder, names in listed.items()}
        faults[MISSING] = [files[path] + _hint(others[path.parent], path) for path in missing]
    found = orientations(there)
    for path, answer in zip(there, found, strict=True):
        if isinstance(answer, ImageError):
            fault = Fault(f"cannot be read ({answer.reason})", answer.fix)
            fault = fault if fault in faults or len(faults) < MOST_REASONS else OTHERS
            faults.setdefault(fault, []).append(files[path])
    return faults, sum(map(is_tagged, found))


def _by_stem(folder: Path, names: list[str], files: dict[Path, str]) -> dict[str, str]:
    """The stem, in lower case -> the name of every image in a folder that is none of `files`."""
    stems = {}
    for name in reversed(names):
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES and folder / name not in files:
            stems[stem.lower()] = name
    return stems


def _hint(others: dict[str, str], path: Path) -> str:
    other = others.get(path.stem.lower())
    return f" (there is {other}: rename it)" if other else ""


def _count(number: int, files: dict[Path, str], title: str) -> str:
    return f"{number} of {len(files)} images of {title}"
