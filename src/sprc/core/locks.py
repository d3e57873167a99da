"""Locks between processes: a folder, or a file that is about to be written, belongs to one of them at a time."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sprc.core.errors import InputError

logger = logging.getLogger(__name__)

# What `flock` answers on a file system without locks: Lustre without -o flock, NFS (EBADF: for a folder), some CIFS.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL)
_handles: set[int] = set()  # of this process


def _forget_in_child() -> None:
    """Close the handles that a forked child has inherited: with them a lock would outlive a parent that is killed."""
    for handle in _handles:
        os.close(handle)
    _handles.clear()


os.register_at_fork(after_in_child=_forget_in_child)


@contextmanager
def held(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold a folder while this context lasts: a second process waits, or gets an InputError.

    If its file system has no locks, a warning is logged and nothing is held. Raises InputError if it cannot be opened.
    """
    handle = _opened(folder, os.O_RDONLY, folder)
    try:
        _lock(handle, folder, wait)
        yield
    finally:
        _release(handle)


@contextmanager
def held_file(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a file that is about to be written, as `held`; it need not exist yet.

    While it is held there is a file `path` + ".lock".
    """
    lock = path.with_name(path.name + ".lock")
    handle = _lock_file(lock, path, wait)
    try:
        yield
    finally:
        if handle in _handles:  # a forked child removes nothing
            lock.unlink(missing_ok=True)
        _release(handle)


def _lock_file(lock: Path, path: Path, wait: bool) -> int:
    """The handle of a locked file of the name `lock`."""
    while True:
        handle = _opened(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, path)
        try:
            _lock(handle, path, wait)
            if _is_at(lock, handle):
                return handle
        except BaseException:
            _release(handle)
            raise
        _release(handle)  # the process that held it has removed it since


def _is_at(lock: Path, handle: int) -> bool:
    try:
        return os.path.samestat(lock.stat(follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False


def _opened(place: Path, flags: int, held_for: Path) -> int:
    try:
        if flags & os.O_CREAT:
            place.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(place, flags, 0o666)
    except OSError as error:
        raise InputError(
            f"{held_for} cannot be held for this process ({error.strerror}): make its folder readable and writable, or"
            " give another one"
        ) from error
    _handles.add(handle)
    return handle


def _release(handle: int) -> None:
    if handle in _handles:  # not in a forked child, which has closed it
        _handles.remove(handle)
        os.close(handle)


def _lock(handle: int, place: Path, wait: bool) -> None:
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise InputError(f"{place} is in use by another process: wait for its end, or stop it") from error
            logger.info(f"waiting for another process that works on {place}")
            fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise InputError(f"{place} cannot be locked ({error.strerror}): check its disk") from error
        logger.warning(
            f"{place}: its file system knows no locks ({error.strerror}): nothing keeps a second run out of it"
        )
