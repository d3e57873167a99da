"""Find image files: a folder is listed once, and names are looked up in the list."""

import os
from pathlib import Path

from sprc.core.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def file_names(folder: Path) -> list[str]:
    """The sorted names in a folder; none if it does not exist. Raises InputError if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror}): make it a folder that you can read") from error


def folder_images(folder: Path) -> dict[str, Path]:
    """Stem -> file of every image in a folder.

    Raises InputError if there is none, if two share a stem, or if a name cannot be written into a file.
    """
    if not os.path.isdir(folder):
        raise InputError(f"no folder {folder}: give the folder of the images")
    images: dict[str, Path] = {}
    for path in (folder / name for name in file_names(folder)):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if not is_text(path.name):
            raise InputError(f"{folder}: the name of the file {path.name!a} is not valid UTF-8: rename it")
        if path.stem in images:
            raise InputError(f"{path} and {images[path.stem]} share a name: rename one")
        images[path.stem] = path
    if not images:
        raise InputError(f"{folder} has no image ({', '.join(IMAGE_SUFFIXES)})")
    return images


def is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
