"""The rows of an index as a build adds to them: what a kill has left is made whole, and damage is found."""

import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sprc.core.files import sync_file, unwritable
from sprc.index.gallery_files import IndexFolder, Maker, Row, whole_lines
from sprc.index.photos import Photo

logger = logging.getLogger(__name__)


class RowFiles:
    """`tokens.bin` and `rows.jsonl`, opened for adding rows; `rows` are those that are there.

    Leaving the context saves what was added, also after an error. Raises InputError if the files cannot be written.
    """

    def __init__(self, folder: IndexFolder, number: int, maker: Maker):
        self.place, self.maker = folder.data(number), maker
        with _writing(self.place):
            self.place.mkdir(parents=True, exist_ok=True)
            self.tokens, self.lines = (_opened(self.place / name) for name in ("tokens.bin", "rows.jsonl"))
            whole = os.path.getsize(self.place / "tokens.bin") // maker.row_bytes
            self.listed = folder.find_gallery(number)
            self.rows = folder.read_rows(number, self.listed)[:whole]
            self._cut()
        self.added: list[Row] = []

    def _cut(self) -> None:
        """Cut off what a kill has left after the last whole row; a gallery that names less than whole rows is none."""
        lines = whole_lines(self.lines.read())[: len(self.rows)]
        size = sum(map(len, lines)) + len(lines)
        if self.listed is not None and size < self.listed.size:
            (self.place / "gallery.npy").unlink()
            self.listed = None
        for file, length in ((self.tokens, len(self.rows) * self.maker.row_bytes), (self.lines, size)):
            file.truncate(length)
            file.seek(length)

    def __enter__(self) -> "RowFiles":
        return self

    def __exit__(self, *_: object) -> None:
        with _writing(self.place), self.tokens, self.lines:  # closing writes as well
            self.save()

    def add(self, name: str, photo: Photo, size: tuple[int, int], tokens: np.ndarray) -> int:
        """Add the tokens (Q, E), float16, of a photograph -> the number of its row."""
        content = np.ascontiguousarray(tokens).tobytes()
        with _writing(self.place):
            self.tokens.write(content)
        self.added.append(Row(name, photo, size, zlib.crc32(content)))
        return len(self.rows) + len(self.added) - 1

    def save(self) -> None:
        """Put all that was added on the disk: first the tokens, then the lines that name them."""
        with _writing(self.place):
            _sync(self.tokens)
            self.lines.write("".join(row.to_line() for row in self.added).encode())
            _sync(self.lines)
        self.rows += self.added
        self.added = []

    def damaged(self) -> Iterator[int]:
        """The rows whose tokens are not what was written."""
        with open(self.place / "tokens.bin", "rb") as file:
            for number, row in enumerate(self.rows):
                if zlib.crc32(file.read(self.maker.row_bytes)) != row.crc:
                    yield number


def good_rows(files: RowFiles) -> dict[str, int]:
    """Name -> its last row, of the rows that are not damaged; damaged ones are counted in the log."""
    damaged = set(files.damaged())
    if damaged:
        logger.warning(f"{len(damaged)} rows of {files.place} are damaged, and are encoded again")
    return {row.name: number for number, row in enumerate(files.rows) if number not in damaged}


def write_compacted(folder: IndexFolder, number: int, maker: Maker) -> None:
    """Write the next data folder: the rows of the gallery alone, in its order."""
    rows, gallery = folder.read_rows(number), folder.read_gallery(number).rows
    stored = folder.open_tokens(number, len(rows), maker)
    with RowFiles(folder, number + 1, maker) as files:
        for row in gallery:
            files.add(rows[row].name, rows[row].photo, rows[row].size, stored[row])
    folder.write_gallery(number + 1, np.arange(len(gallery)))


def _opened(path: Path) -> BinaryIO:
    """A file for reading and writing, made if it is not there; a link is not followed."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")


def _sync(file: BinaryIO) -> None:
    file.flush()
    sync_file(file.fileno())


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(place, error) from error
