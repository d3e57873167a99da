"""Reading and writing files so that nothing is lost and a fault is named."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lavis.common.errors import InputError


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` once all is written and on the disk; until then what was there stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Have a new name survive a power cut too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, as `atomic_writer`."""
    with atomic_writer(path) as file:
        file.write(text.encode("utf-8"))


def read_json(path: Path, kind: type, cure: str) -> dict | list:
    """The content of a JSON file. Raises InputError, with the cure, where it is missing, malformed or not a `kind`."""
    if not path.is_file():
        raise InputError(f"no file {path}: {cure}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): {cure}") from error
    if not isinstance(content, kind):
        raise InputError(f"{path} should hold a JSON {kind.__name__}, not a {type(content).__name__}: {cure}")
    return content
