"""Reading and writing files so that nothing is lost and a fault is named."""

import json
import os
from pathlib import Path

from lavis.common.errors import InputError


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8; a file of that name is replaced only once all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


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
