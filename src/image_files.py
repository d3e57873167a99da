"""Which image files are there: folders are listed once, and names are found in the lists."""

import os
from collections.abc import Iterable
from pathlib import Path

from lavis.common.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Of an image of FashionIQ, the first that is there.
FASHIONIQ_SUFFIXES = (".png", ".jpg", ".jpeg")


def file_names(folder: Path) -> list[str]:
    """The sorted names of what is in a folder; none without a folder. Raises InputError if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror}): make it a folder that you can read") from error


def fashioniq_image_paths(root: Path, names: Iterable[str]) -> dict[str, str]:
    """name -> path relative to `root`, with the first of `FASHIONIQ_SUFFIXES` that is there, lower case before others.

    An image that is not there gets `.png`.
    """
    present: dict[str, list[str]] = {}
    for file in file_names(root / "images"):
        stem, suffix = os.path.splitext(file)
        if suffix.lower() in FASHIONIQ_SUFFIXES:
            present.setdefault(stem, []).append(suffix)
    found = {name: min(present.get(name, [".png"]), key=_preference) for name in names}
    return {name: os.path.join("images", name + suffix) for name, suffix in found.items()}


def _preference(suffix: str) -> tuple[bool, int, str]:
    return suffix != suffix.lower(), FASHIONIQ_SUFFIXES.index(suffix.lower()), suffix


def folder_images(folder: Path) -> dict[str, Path]:
    """Stem -> file of every image in a folder. Raises InputError if there is none, or two share a stem."""
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give the folder of the images")
    images: dict[str, Path] = {}
    for path in (folder / name for name in file_names(folder)):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if path.stem in images:
            raise InputError(f"{path} and {images[path.stem]} share a name: rename one")
        images[path.stem] = path
    if not images:
        raise InputError(f"{folder} has no image ({', '.join(IMAGE_SUFFIXES)})")
    return images
