"""Reading and writing files so that nothing is lost and a fault is named."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from lavis.common.errors import InputError


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` once all is written and on the disk; until then what was there stays.

    Raises InputError where the disk is full, the folder cannot be written, or the disk fails.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)  # it may be what has filled the disk
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> InputError:
    """The error for a file or folder that cannot be written, and the cure."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    cure = "free some space" if full else "make its folder writable, or give another one"
    return InputError(f"{path} cannot be written ({error.strerror or error}): {cure}; what was saved before is whole")


@contextmanager
def held(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold a folder while this context lasts: a second process waits, or gets an InputError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise InputError(f"{folder} is in use by another process: wait for its end, or stop it") from error
            print(f"waiting for another process that works on {folder}", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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
