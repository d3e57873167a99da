"""The files of an index, read and written. An index is a folder with

    index.json     what made it (`Maker`), the number of its data folder, and the settings of the model
    photos         a link to the folder of the photographs
    checkpoint     a link to the model's weights
    skipped.json   the photographs that cannot be read, and why
    data-<number>/
        tokens.bin    (R, Q, E) float16: the target tokens of one image after another, L2-normalised
        rows.jsonl    R lines: name, file size and time, (width, height) in pixels, CRC-32 of the tokens
        gallery.npy   (N,) int64: the rows of the gallery's images, in the order of their names; after them the size
                      of rows.jsonl, its CRC-32, and the CRC-32 of all that, by which damage is found

Rows are only ever added: tokens first, then the lines that name them, then the gallery. So whatever ends a build, all
rows whose lines are whole are good, and a search that runs meanwhile sees the gallery as it was. A photograph that was
deleted or changed leaves a row that no gallery names. If most rows are such, the next build writes a new data folder.
"""

import gc
import io
import json
import logging
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sprc.core.errors import InputError, shown
from sprc.core.files import atomic_writer, write_atomically
from sprc.core.reading import parse_json, read_bytes, read_json, readable
from sprc.index.photos import Photo, is_inside

logger = logging.getLogger(__name__)

FORMAT = 1
PHOTOS, CHECKPOINT, SKIPPED = "photos", "checkpoint", "skipped.json"
AGAIN = "run the command index again"
OF_LINES, OF_ALL = struct.Struct("<QI"), struct.Struct("<I")  # the end of gallery.npy


@dataclass(frozen=True)
class Maker:
    """What made the tokens of an index: two makers that are equal give the same tokens.

    `model` is a name for messages alone; `fingerprint` is of the weights, whatever file and device they came from.
    `tokens` and `width` are Q and E.
    """

    model: str
    fingerprint: str
    target_ratio: float
    dim: int
    tokens: int
    width: int

    def same_as(self, other: "Maker") -> bool:
        return asdict(self) | {"model": ""} == asdict(other) | {"model": ""}

    def __str__(self) -> str:
        weights, padding = self.fingerprint[:12], f"padded to ratio {self.target_ratio:g}"
        return f"{self.model} (weights {weights}, {self.dim} pixels, {padding})"

    @property
    def row_bytes(self) -> int:
        return 2 * self.tokens * self.width


class Row(NamedTuple):
    """What an index knows of one row: the photograph as it was, its (width, height) in pixels, its tokens' CRC-32."""

    name: str
    photo: Photo
    size: tuple[int, int]
    crc: int

    def to_line(self) -> str:
        values = [self.name, self.photo.bytes, self.photo.mtime_ns, *self.size, self.crc]
        return json.dumps(values, ensure_ascii=False) + "\n"

    @classmethod
    def from_values(cls, values) -> "Row":
        """Raises ValueError for what is no row."""
        name, *numbers = values
        if not is_inside(name) or len(numbers) != 5 or set(map(type, numbers)) != {int}:
            raise ValueError(f"{shown(values)} is no row")
        return cls(name, Photo(*numbers[:2]), (numbers[2], numbers[3]), numbers[4])


class Listed(NamedTuple):
    """The rows (N,) of a gallery's images, and the size and CRC-32 of rows.jsonl as it was when they were listed."""

    rows: np.ndarray
    size: int
    crc: int


def whole_lines(content: bytes) -> list[bytes]:
    """The lines of rows.jsonl that end."""
    return content.split(b"\n")[:-1]


@dataclass(frozen=True)
class IndexFolder:
    """An index on disk. Everything here raises InputError that names the file and the fix."""

    path: Path

    @property
    def fix(self) -> str:
        return f"remove {self.path} and index again"

    def data(self, number: int) -> Path:
        return self.path / f"data-{number}"

    def exists(self) -> bool:
        return (self.path / "index.json").exists()

    def refuse_other_data(self) -> None:
        """Raise InputError if the folder holds something that is no index."""
        if not self.exists() and any(self.path.iterdir()):
            raise InputError(f"{self.path} holds data that is no index: give another `output`")

    def remove_other_data(self, number: int) -> None:
        """Remove the data folders that are not in use: older ones, and one that a kill has left half written."""
        for other in self.path.glob("data-*"):
            if other != self.data(number) and not other.is_symlink():
                shutil.rmtree(other, ignore_errors=True)  # they harm nobody

    def set_link(self, name: str, target: Path | None) -> None:
        """Have a link lead to a file or folder, or none. A disk without links is told of: the path is then a flag."""
        link = self.path / name
        if target is not None and self.link(name) == target.resolve():
            return
        try:
            link.unlink(missing_ok=True)
            if target is not None:
                link.symlink_to(target.resolve())
        except OSError as error:
            logger.warning(f"{link} cannot be made ({error.strerror}): give {target} with each search")

    def link(self, name: str) -> Path | None:
        """Where the link `photos` or `checkpoint` leads; None if there is none."""
        link = self.path / name
        return link.resolve() if link.is_symlink() or link.exists() else None

    def read_head(self) -> tuple[Maker, int, dict]:
        """(maker, number of the data folder, settings of the model)."""
        path = self.path / "index.json"
        if not path.is_file():
            raise InputError(f"{self.path} is no index: give a folder that the command index has made")
        head = read_json(path, dict, self.fix, paths=True)
        if head.get("format") != FORMAT:
            raise InputError(f"{path} is of format {shown(head.get('format'))}, not {FORMAT}: {self.fix}")
        maker, number, settings = head.get("maker"), head.get("data"), head.get("settings")
        if type(number) is not int or number < 0 or not isinstance(settings, dict):
            raise InputError(f"{path} lacks what an index.json holds: {self.fix}")
        return self._maker(maker), number, settings

    def _maker(self, values) -> Maker:
        if not _is_maker(values):
            raise InputError(f"{self.path / 'index.json'} does not say what made it: {self.fix}")
        return Maker(**values)

    def write_head(self, maker: Maker, number: int, settings: dict) -> None:
        head = {"format": FORMAT, "maker": asdict(maker), "data": number, "settings": settings}
        write_atomically(self.path / "index.json", json.dumps(head, indent=2))

    def read_rows(self, number: int, listed: "Listed | None" = None) -> list[Row]:
        """All rows whose lines are whole; a last line that a kill cut short is none.

        Those of a gallery must be as they were when it was written.
        """
        path = self.data(number) / "rows.jsonl"
        content = read_bytes(path, self.fix) if path.exists() else b""
        if listed is not None and zlib.crc32(content[: listed.size]) != listed.crc:
            raise InputError(f"{path} is damaged: {self.fix}")
        try:
            with _no_garbage_collection():
                lines = parse_json(b"[" + b",".join(whole_lines(content)) + b"]", str(path), self.fix)
                return [Row.from_values(values) for values in lines]
        except (TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged ({error}): {self.fix}") from error

    def find_gallery(self, number: int) -> "Listed | None":
        """What `write_gallery` has written; None if it is not there, or damaged."""
        path = self.data(number) / "gallery.npy"
        content = read_bytes(path, self.fix) if path.exists() else b""
        body, end = content[: -OF_ALL.size], content[-OF_ALL.size :]
        if not body or OF_ALL.pack(zlib.crc32(body)) != end:
            return None
        rows = np.load(io.BytesIO(body), allow_pickle=False)
        return Listed(rows, *OF_LINES.unpack(body[-OF_LINES.size :]))

    def read_gallery(self, number: int) -> "Listed":
        listed, path = self.find_gallery(number), self.data(number) / "gallery.npy"
        if listed is None and path.exists():
            raise InputError(f"{path} is damaged: {AGAIN}")
        if listed is None:
            raise InputError(f"{self.path} is not complete: wait for the process that builds it, or {AGAIN}")
        return listed

    def write_gallery(self, number: int, gallery: np.ndarray) -> None:
        """Name the rows (N,) of the gallery's images; all lines of rows.jsonl must be on the disk."""
        lines, body = read_bytes(self.data(number) / "rows.jsonl", self.fix), io.BytesIO()
        np.save(body, gallery.astype(np.int64))
        content = body.getvalue() + OF_LINES.pack(len(lines), zlib.crc32(lines))
        with atomic_writer(self.data(number) / "gallery.npy") as file:
            file.write(content + OF_ALL.pack(zlib.crc32(content)))

    def open_tokens(self, number: int, rows: int, maker: Maker) -> np.ndarray:
        """Map the tokens (R, Q, E), float16; what is written into the array never reaches the file."""
        path = self.data(number) / "tokens.bin"
        with readable(path, self.fix):
            if path.stat().st_size < rows * maker.row_bytes:
                raise InputError(f"{path} holds fewer than its {rows} rows: {self.fix}")
            return np.memmap(path, np.float16, "c", shape=(rows, maker.tokens, maker.width))

    def write_skipped(self, skipped: Iterable[tuple[str, str]]) -> None:
        listed = [{"name": name, "reason": reason} for name, reason in skipped]
        write_atomically(self.path / SKIPPED, json.dumps(listed, indent=2, ensure_ascii=False))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Python looks for garbage again and again while many objects are made; of 10^5 rows that was half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _is_maker(values) -> bool:
    if not isinstance(values, dict) or set(values) != {entry.name for entry in fields(Maker)}:
        return False
    numbers = all(type(values[name]) is int and values[name] > 0 for name in ("dim", "tokens", "width"))
    words = all(isinstance(values[name], str) for name in ("model", "fingerprint"))
    return numbers and words and isinstance(values["target_ratio"], int | float)
