"""The photographs below a folder: found by their names, known again by size and time, opened by a loader."""

import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sprc.core.errors import ImageError, InputError, printable
from sprc.data.image_files import IMAGE_SUFFIXES, is_text
from sprc.data.images import is_tagged, open_rgb, orientation

logger = logging.getLogger(__name__)


class Photo(NamedTuple):
    """A file as it was: if its size in bytes and its time of modification are the same, it is the same photograph."""

    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class OpenedPhoto:
    """A photograph ready for the model: (3, S, S), and the (width, height) of the raw image in pixels."""

    image: Tensor
    size: tuple[int, int]
    tagged: bool


def list_photos(folder: Path) -> dict[str, Photo]:
    """Name -> file of every photograph below a folder, sorted by name; a name is its path from there, with `/`.

    Files of other kinds and links to folders are left out, and counted in the log. Hidden folders and files are left
    out. Raises InputError if the folder is missing or holds no photograph, if a folder in it cannot be listed, or if a
    name is not valid UTF-8.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give the folder of the photographs")
    found: dict[str, Photo] = {}
    others: Counter[str] = Counter()
    linked: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked += (path for path in (Path(parent, name) for name in folders) if _leads_elsewhere(path, folder))
        for path in (Path(parent, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                found[_name(path, folder)] = _photo(path)
            else:
                others[path.suffix.lower() or "no suffix"] += 1
    if not found:
        raise InputError(f"{folder} holds no photograph ({', '.join(IMAGE_SUFFIXES)}): give the folder that holds them")
    _say_what_is_left_out(folder, others, linked)
    return dict(sorted(found.items()))


def _leads_elsewhere(path: Path, folder: Path) -> bool:
    """Whether this is a link to a folder, but not to one that the link lies in: it would lead round and round."""
    return path.is_symlink() and not folder.resolve().is_relative_to(path.resolve())


def _say_what_is_left_out(folder: Path, others: Counter[str], linked: list[Path]) -> None:
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        logger.info(f"{others.total()} files in {folder} are of other kinds and are left out: {kinds}")
    if linked:
        first = printable(str(linked[0]))
        logger.warning(f"{len(linked)} links to folders are not followed, first {first}: index the folder that has all")


def _refuse(error: OSError) -> None:
    raise InputError(
        f"{os.fsdecode(error.filename)} cannot be listed ({error.strerror}): make it a folder that you can read"
    )


def _name(path: Path, folder: Path) -> str:
    name = path.relative_to(folder).as_posix()
    if not is_text(name):
        raise InputError(f"{folder}: the name of the file {name!a} is not valid UTF-8: rename it")
    return name


def _photo(path: Path) -> Photo:
    """The file's size and time; a link that leads nowhere has neither, and is found broken when it is opened."""
    try:
        stat = path.stat()
    except OSError:
        return Photo(0, 0)
    return Photo(stat.st_size, stat.st_mtime_ns)


def is_inside(name) -> bool:
    """Whether this is a name that `list_photos` could give: a path that stays below its folder."""
    if not isinstance(name, str) or "\0" in name or not name:
        return False
    return not name.startswith("/") and ".." not in name.split("/")


class PhotoFiles(Dataset):
    """Photographs by name for a loader: an item is `(name, OpenedPhoto)`, or `(name, ImageError)` if it is broken."""

    def __init__(self, folder: Path, names: list[str], preprocess: Callable[[Image.Image], Tensor]):
        self.folder, self.names, self.preprocess = folder, names, preprocess

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> tuple[str, OpenedPhoto | ImageError]:
        name = self.names[number]
        path = self.folder / name
        try:
            image = open_rgb(path)
            return name, OpenedPhoto(self.preprocess(image), image.size, is_tagged(orientation(path)))
        except ImageError as error:
            return name, error
