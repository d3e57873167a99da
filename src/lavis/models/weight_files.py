"""Reading weight files: torch's zip and its older format, safetensors, folders of the hub; and checking for damage."""

import re
import zipfile
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file

from sprc.core.errors import InputError, first_line
from sprc.core.files import read_json
from sprc.core.reading import is_file_name, parse_json, readable

DOWNLOAD_AGAIN = "download or copy it again"
SAVE_ALONE = (
    'save the weights alone, torch.save({"state_dict": model.state_dict()}, PATH), in the environment that made it'
)
INDEX = "model.safetensors.index.json"
CHUNK = 2**20
LARGEST_HEADER = 10**8  # bytes that a safetensors header may have
_WHOLE: set[tuple] = set()  # the zips that this process has found to be whole


def read_content(path: Path) -> dict:
    """The entries of a weight file, or of a folder as the hub lays it out: `model.safetensors`, or parts with an index.

    Raises InputError that names the file if it is missing, damaged, or holds no dictionary.
    """
    with readable(path):
        if not path.is_dir():
            return _read_file(path)
        index = path / INDEX
        return _read_parts(index) if index.is_file() else _read_file(path / "model.safetensors")


def _read_parts(index: Path) -> dict:
    content: dict = {}
    for part in _parts(index):
        entries = _read_file(index.parent / part)
        twice = sorted(content.keys() & entries.keys())
        if twice:
            raise InputError(f"{index.parent / part} holds {twice[0]}, as another part does: {DOWNLOAD_AGAIN}")
        content |= entries
    return content


def _parts(index: Path) -> list[str]:
    """The files that an index names. Raises InputError unless each is the name of a file in the index's own folder."""
    entries = read_json(index, dict, DOWNLOAD_AGAIN).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{index} is no index of safetensors parts: it lacks a weight_map: {DOWNLOAD_AGAIN}")
    for name, part in entries.items():
        if not is_file_name(part):
            raise InputError(
                f"{index}: weight_map places {name} in {part!r}, which is not the name of a file in this folder:"
                f" {DOWNLOAD_AGAIN}"
            )
    return sorted(set(entries.values()))


def _read_file(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"no weights at {path}: give the path of a weight file, or of a folder of the hub")
    content = read_tensors(path, DOWNLOAD_AGAIN, mapped=True, foreign_fix=SAVE_ALONE)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def read_tensors(path: Path, fix: str, mapped: bool = False, foreign_fix: str | None = None):
    """The content of a torch or safetensors file.

    A zip, which torch writes since 1.6, is checked against its own CRCs. Torch's older format and safetensors hold no
    CRCs: a flipped bit among their numbers is not found here.

    Args:
        path: the file.
        fix: what to do if it is damaged.
        mapped: map the file into memory, for one that stays unchanged: a part is read when it is first used.
        foreign_fix: what to do if it holds other things than tensors, numbers and texts; None: `fix`.

    Raises:
        InputError: it cannot be read, is damaged or holds code, which is never run.
    """
    try:
        with readable(path):
            if _is_safetensors(path):
                check_header(path, fix)
                return load_file(path)
            is_zip = zipfile.is_zipfile(path)
            if is_zip:
                check_zip(path, fix)
            # Files of before torch 1.6 are no zip archives and cannot be memory-mapped; nor can names that are no text.
            mapped = mapped and is_zip and str(path).isprintable()
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # on damaged bytes torch's reader raises errors of any type
        raise _unreadable(path, error, fix, foreign_fix or fix) from error


def _unreadable(path: Path, error: Exception, fix: str, foreign_fix: str) -> InputError:
    reason = first_line(error).split(". ")[0]
    if not reason.startswith("Weights only load failed"):  # torch's own advice would be to run what the file holds
        return InputError(f"{path} cannot be read as a weight file ({reason}): {fix}")
    found = re.search(r"GLOBAL (\S+)|but got (\S+)|unrecognized function (\S+)", str(error))
    if found is None:
        return InputError(
            f"{path} cannot be read as a weight file (it is damaged, or no file of torch.save; code in a file is never"
            f" run): {fix}"
        )
    code = found[found.lastindex or 0]
    return InputError(
        f"{path} cannot be read as a weight file: beside tensors, numbers and texts it holds {code},"
        f" and code in a file is never run: {foreign_fix}"
    )


def _is_safetensors(path: Path) -> bool:
    """A safetensors file begins with the length of its header, 8 bytes, and the header's brace."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def check_header(path: Path, fix: str) -> None:
    """Raise InputError if the header of a safetensors file has a name twice: its reader would take the last one."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length <= LARGEST_HEADER:  # the reader itself reports one that is longer, or cut off
            header = file.read(length)
            if len(header) == length:
                parse_json(header, f"the header of {path}", fix)


def check_zip(path: Path, fix: str) -> None:
    """Read every member of a zip, once a process, and compare its CRC.

    This takes 0.4 s a GB if the file is in the page cache, and leaves it there for the reading that follows. A file
    that torch wrote without CRCs (`torch.serialization.set_crc32_options(False)`) has 0 for all of them, and is not
    checked. Raises InputError that names the file and the damaged member.
    """
    status = path.stat()
    stamp = (path.absolute(), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if stamp in _WHOLE:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damage = _damage(archive)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as error:
        damage = first_line(error)
    if damage:
        raise InputError(f"{path} is damaged: {damage}: {fix}")
    _WHOLE.add(stamp)


def _damage(archive: zipfile.ZipFile) -> str | None:
    """What is wrong with a zip, or None."""
    members = archive.infolist()
    if len({member.filename for member in members}) != len(members):
        return "it holds a member twice"
    has_crcs = any(member.CRC for member in members)
    damaged = next((m.filename for m in members if has_crcs and not _is_whole(archive, m)), None)
    return None if damaged is None else f"{damaged} is not what was written, by the file's own CRC"


def _is_whole(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(member) as file:
            while file.read(CHUNK):
                pass
    except (zipfile.BadZipFile, EOFError):
        return False
    return True
