"""Faults of a path that is read, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lavis.common.errors import InputError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors of the system while `path` is looked for or read (permissions, links, too long a name) as InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}): check its permissions, its folders and its links, or"
            " give another path"
        ) from error


def expanded(path: str | Path) -> Path:
    """The path with `~` as the home folder. Raises InputError where a user's home folder is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: the home folder of that user is not known: write the whole path") from error
