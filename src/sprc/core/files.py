"""Writing files so that nothing is lost and a fault is named; `reading` and `locks` can be imported from here too."""

import csv
import errno
import io
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from sprc.core.errors import InputError
from sprc.core.locks import held as held
from sprc.core.locks import held_file as held_file
from sprc.core.reading import read_bytes as read_bytes
from sprc.core.reading import read_json as read_json
from sprc.core.reading import readable as readable

FIXES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, of your quota",
    errno.EIO: "check the disk, or give another folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EEXIST: "another process writes it at this moment, or a file is in the place of its folder",
    errno.ENOTEMPTY: "remove the folder that ends in .partial beside it",
}
# The answers of a file system that cannot put a file, or the names in a folder, on the disk at once: CIFS, FUSE.
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
NO_FOLDER_SYNC = (*NO_SYNC, errno.EBADF, errno.EACCES)


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` once all is written and on the disk. Until then the old file stays.

    If anything ends it early, no part is left. The file is written as `path` + ".partial". What has that name already
    is removed, and a symbolic link is never followed.

    Raises InputError if the disk is full, the folder cannot be written, or the disk fails.
    """
    partial = path.with_name(path.name + ".partial")
    file = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _Watched(open_new(partial))
        yield cast(BinaryIO, file)
        if file.error:
            raise file.error
        file.flush()
        sync_file(file.fileno())
        _check_place(partial, file)
        file.close()
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException as error:
        if file is not None:
            _give_up(file, partial)  # it may be what has filled the disk
        cause = error if isinstance(error, OSError) else file and file.error
        if cause and isinstance(error, (OSError, RuntimeError)):  # torch.save raises a RuntimeError of its own
            raise unwritable(path, cause) from cause
        raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path at which a library writes a file or folder by itself. The result takes the name `path` once it is whole.

    If anything ends it early, no part is left. Raises InputError as `atomic_writer`.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        yield partial
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            _remove(partial)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class _Watched:
    """A file that keeps the first error of its writes: C++ code, such as torch.save's, hides it."""

    error: OSError | None

    def __init__(self, file: BinaryIO):
        self.file, self.error, self.stat = file, None, os.fstat(file.fileno())

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def open_new(partial: Path) -> BinaryIO:
    """Open a new file for writing; what has its name already is removed, and a link is not followed."""
    with suppress(FileNotFoundError):
        try:
            partial.unlink()
        except IsADirectoryError:
            partial.rmdir()
    return os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb")


def _check_place(partial: Path, file: _Watched) -> None:
    """Raise FileExistsError if another process has put its own file, not whole yet, in the place of this one."""
    if not os.path.samestat(partial.stat(follow_symlinks=False), file.stat):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _give_up(file: _Watched, partial: Path) -> None:
    """Close and remove a file. Errors of this are dropped: the error that led here is the one to report."""
    with suppress(OSError):
        _check_place(partial, file)
        partial.unlink()
    with suppress(OSError):
        file.close()


def sync_file(handle: int) -> None:
    """Wait until what was written to a file is on the disk, if its file system can do that."""
    _sync(handle, NO_SYNC)


def _sync(handle: int, forgiven: tuple[int, ...]) -> None:
    """Wait until a file is on the disk, if its file system can do that."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in forgiven:
            raise


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: a new name then survives a power cut."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that can be written but not read
        return
    try:
        _sync(handle, NO_FOLDER_SYNC)
    finally:
        os.close(handle)


@contextmanager
def made_and_held(folder: Path, wait: bool = True) -> Iterator[None]:
    """Make a folder that several processes may want, and hold it: one process works in it, and the others wait.

    Without `wait` the others get an InputError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    with held(folder, wait):
        yield


def unwritable(path: Path, error: OSError) -> InputError:
    """The error for a file or folder that cannot be written, and the fix."""
    fix = FIXES.get(error.errno or 0, "make its folder writable, or give another one")
    return InputError(f"{path} cannot be written ({error.strerror or error}): {fix}; what was saved before is whole")


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, as `atomic_writer`."""
    with atomic_writer(path) as file:
        file.write(text.encode("utf-8"))


def append_csv(path: Path, columns: list[str], rows: Iterable[dict], ending: str = "\r\n") -> None:
    """Add rows at the end of a CSV file, which is whole at any moment. The first rows bring the line of the columns."""
    before = read_bytes(path, "remove it") if path.exists() else b""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator=ending)
    if not before:
        writer.writeheader()
    writer.writerows(rows)
    with atomic_writer(path) as file:
        file.write(before + buffer.getvalue().encode("utf-8"))
