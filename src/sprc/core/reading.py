"""Reading files that a user gives: a fault is one line that names the file, the entry and the fix."""

import csv
import io
import json
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sprc.core.errors import InputError, shown

Json = TypeVar("Json", dict, list)

# JSON writes a character beyond the first 65,536 as two of these; one of them alone is no character.
HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


CHECK_PATH = "check its permissions, its folders and its links, or give another path"


@contextmanager
def readable(path: Path, fix: str = CHECK_PATH) -> Iterator[None]:
    """Turn an OSError of reading `path` into an InputError that names the file, the reason and the fix."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"no file {path}: {fix}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): {fix}") from error


def expanded(path: str | Path) -> Path:
    """The path with `~` as a home folder. Raises InputError for the home folder of an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: {error}; write the whole path") from error


def is_file_name(name) -> bool:
    """Whether this is a plain file name: no folder, no drive, nothing that leads out of a folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not re.search(r"[/\\:\x00-\x1f]", name)


def read_bytes(path: Path, fix: str) -> bytes:
    """The content of a file. Raises InputError, with the fix, if it is missing, no regular file, or unreadable."""
    with readable(path, fix):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path} is a folder, not a file: {fix}")
        if not stat.S_ISREG(mode):  # reading a pipe would never end
            raise InputError(f"{path} is no regular file: {fix}")
        return path.read_bytes()


def read_json(path: Path, kind: type[Json], fix: str, paths: bool = False) -> Json:
    """The content of a JSON file in UTF-8, with or without a byte order mark.

    With `paths` a text may hold the surrogates that stand for undecodable bytes of a file's name.

    Raises InputError, with the fix, if the file is missing, malformed or no `kind`. Raises it, with the entry too, if
    an object has a key twice, or a text or key has half of a character (a lone surrogate).
    """
    content = parse_json(read_bytes(path, fix), str(path), fix, paths)
    if not isinstance(content, kind):
        raise InputError(f"{path} should hold a JSON {kind.__name__}, not a {type(content).__name__}: {fix}")
    return content


def parse_json(raw: bytes, source: str, fix: str, paths: bool = False):
    """The content of JSON bytes; errors as `read_json`'s. `source` names them: a file, or a line of one."""
    twice: list[tuple[dict, str]] = []
    try:
        text = raw.decode("utf-8-sig")
        content = json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, twice))
        for entry, key in twice:
            place = next(place for place, value in _walk(content) if value is entry)
            raise InputError(f"{source}: {_named(place)} has the key {key!a} twice: {fix}")
        if HALF_CHARACTER.search(text):
            _check_characters(content, source, fix, "surrogateescape" if paths else "strict")
    except RecursionError as error:
        raise InputError(f"{source} is not valid JSON of this project (nested too deeply): {fix}") from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source} is not valid JSON ({error}): {fix}") from error
    return content


def _object(pairs: list[tuple[str, object]], twice: list[tuple[dict, str]]) -> dict:
    """A JSON object. If it has a key twice, the object and the key are added to `twice`."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        keys = [key for key, _ in pairs]
        twice.append((entries, next(key for key in keys if keys.count(key) > 1)))
    return entries


def _check_characters(content, source: str, fix: str, errors: str) -> None:
    for place, value in _walk(content):
        for text in value if isinstance(value, dict) else [value]:
            if isinstance(text, str) and not _is_encodable(text, errors):
                raise InputError(f"{source}: {_named(place)} holds half of a character, in {text[:60]!a}: {fix}")


def _is_encodable(text: str, errors: str) -> bool:
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True


def _walk(value, place: tuple = ()) -> Iterator[tuple[tuple, object]]:
    """(place, value) of a JSON value and of all that is in it; a place is keys and indices from the outside in."""
    yield place, value
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield from _walk(inner, (*place, key))


def _named(place: tuple) -> str:
    return "entry " + ", ".join(map(ascii, place)) if place else "the object"


def read_csv(path: Path, fix: str) -> list[tuple[int, dict[str, str]]]:
    """(line, column -> text) of every row of a CSV file in UTF-8 whose first line has the names of the columns.

    Raises InputError that names the file, and a column that comes twice, or a line with more or fewer columns.
    """
    try:
        text = read_bytes(path, fix).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = reader.fieldnames or []
        rows = [(reader.line_num, row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no CSV file in UTF-8 ({error}): {fix}") from error
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path} has the column {shown(twice)} twice: {fix}")
    for number, row in rows:
        if None in row or None in row.values() or "\0" in "".join(row.values()):
            raise InputError(f"{path}, line {number} has not the {len(columns)} columns of the first: {fix}")
    return rows
