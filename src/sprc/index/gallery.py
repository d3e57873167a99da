"""A gallery on disk, opened for searching; how it lies there is said in `gallery_files`."""

import hashlib
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np

from sprc.core.errors import InputError
from sprc.index.gallery_files import AGAIN, PHOTOS, IndexFolder


class Gallery:
    """The N images of an index, in the order of their names, with their target tokens on disk.

    Raises InputError if the folder is no index, or an index that is incomplete or damaged.
    """

    def __init__(self, path: Path):
        self.folder = IndexFolder(path)
        try:
            self._read()
        except InputError:
            if self.folder.read_head()[1] == self.number:
                raise
            self._read()  # a build has put another data folder in the place of this one meanwhile

    def _read(self) -> None:
        self.maker, self.number, self.settings = self.folder.read_head()
        listed = self.folder.read_gallery(self.number)  # first: a process that builds the index adds rows meanwhile
        rows = self.folder.read_rows(self.number, listed)
        self.rows = listed.rows
        self.stored = self.folder.open_tokens(self.number, len(rows), self.maker)  # (R, Q, E)
        self.images = [rows[row] for row in self.rows]
        self.names = [image.name for image in self.images]

    def require_whole(self, position: int) -> None:
        """Raise InputError if the tokens of the image at this place are not those that were written."""
        if zlib.crc32(self.stored[self.rows[position]]) != self.images[position].crc:
            raise self.damage()

    def damage(self) -> InputError:
        """What to say of tokens that are damaged."""
        return InputError(f"{self.data_folder / 'tokens.bin'} is damaged: {AGAIN}; it encodes again what is damaged")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def data_folder(self) -> Path:
        """Where engines keep files of their own; they belong to the gallery whose `digest` they name."""
        return self.folder.data(self.number)

    @cached_property
    def position_of(self) -> dict[str, int]:
        """Name -> place in the gallery."""
        return {name: position for position, name in enumerate(self.names)}

    @cached_property
    def photos(self) -> Path:
        """The folder of the photographs. Raises InputError if it has moved."""
        folder = self.folder.link(PHOTOS)
        if folder is None or not folder.is_dir():
            raise InputError(f"{self.path / PHOTOS} leads to no folder of photographs: give it as `photos`")
        return folder

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the gallery holds: names and tokens, in order."""
        content = hashlib.sha256()
        for image in self.images:
            content.update(f"{image.name}\n{image.crc}\n".encode())
        return content.hexdigest()

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """(n, Q, E) float16: the target tokens of the images from `start` up to `stop`, without it."""
        rows = self.rows[start:stop]
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
            return self.stored[rows[0] : rows[-1] + 1]  # of one piece: nothing is copied
        return self.stored[rows]

    def tokens_of(self, positions: np.ndarray) -> np.ndarray:
        """(n, Q, E) float16: the target tokens of the images at these places."""
        return self.stored[self.rows[positions]]
