"""Download a file: continue after a break, and check the whole before it takes its name."""

import base64
import hashlib
import logging
import os
import re
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from sprc.core.errors import InputError
from sprc.core.files import held, unwritable

logger = logging.getLogger(__name__)

ATTEMPTS = 5
SECONDS_TO_CONNECT = 20
CHUNK = 2**20


class BrokenAnswerError(ConnectionError):
    """A server's answer is no HTTP, or not the file that was asked for: another attempt may do better."""


def download(url: str, path: Path) -> None:
    """Download to `path` with a progress bar; continues what an earlier attempt left in `<path>.partial`.

    The file is checked against its length and, if the server publishes one (`x-goog-hash`), its MD5; it takes its
    name only once it is whole. A second process that downloads to the same folder waits, and then finds the file.

    Raises OSError if the network fails, and InputError if the content is damaged or a web page, or the disk is full.
    After a full disk the part stays, and the next call continues it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path.parent, error) from error
    with held(path.parent, wait=True):
        if path.is_file():  # another process has just written it
            return
        logger.info(f"downloading {url} to {path}")
        partial = path.with_name(path.name + ".partial")
        _remove_link(partial)
        md5 = _fetch_in_attempts(url, partial)
        if md5 is not None and _md5(partial) != md5:
            partial.unlink()
            raise InputError(
                f"{url} was damaged on its way: its MD5 is not the one that the server gives. Run this again"
            )
        os.replace(partial, path)


def _remove_link(partial: Path) -> None:
    """Remove a link that has the name of the part: the download would be written to the place it leads to."""
    try:
        if partial.is_symlink():
            partial.unlink()
    except OSError as error:
        raise unwritable(partial, error) from error


def _fetch_in_attempts(url: str, partial: Path) -> str | None:
    for attempt in range(ATTEMPTS):
        try:
            return _fetch(url, partial)
        except OSError as error:
            hopeless = not partial.is_file() and not isinstance(error, BrokenAnswerError)
            if hopeless or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("every attempt returns or raises")


def _fetch(url: str, partial: Path) -> str | None:
    """Append what is missing to `partial`; returns the MD5 that the server gives (base64), or None."""
    start = partial.stat().st_size if partial.is_file() else 0
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urlopen(request, timeout=SECONDS_TO_CONNECT) as response:
            _refuse_web_page(url, partial, response)
            continues = start > 0 and response.status == 206 and _range_start(response) == start
            if continues or response.status == 200:  # a server without ranges sends everything
                _write(response, partial, start if continues else 0)
                return published_md5(response.headers.get_all("x-goog-hash", []))
    except HTTPError as error:
        if error.code != 416 or not start:
            raise
    except HTTPException as error:  # no OSError: a bad status line, a chunk that is cut off
        raise BrokenAnswerError(f"{type(error).__name__}: {error}") from error
    if not start:
        raise BrokenAnswerError(f"the server answers by status {response.status}, which is not the whole file")
    partial.unlink()  # it is longer than the source, or the server sent another part than the missing one
    return _fetch(url, partial)


def _refuse_web_page(url: str, partial: Path, response) -> None:
    if response.headers.get_content_type() == "text/html":
        raise InputError(
            f"{url} is answered by a web page, perhaps of a proxy or a login: download the file by a browser, and put"
            f" it at {str(partial).removesuffix('.partial')}"
        )


def _range_start(response) -> int | None:
    """The first byte of the part that the server sends, by its `Content-Range: bytes 100-199/200`, or None."""
    found = re.fullmatch(r"bytes\s+(\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    return None if found is None else int(found[1])


def _write(response, partial: Path, start: int) -> None:
    """Append the answer to the part, or replace the part if `start` is 0.

    Raises OSError if nothing arrives, or less than was announced. Without an announced length, the end of the
    connection is the end of the file.
    """
    total = _announced_size(response, start)
    chunk = response.read(CHUNK)
    if not chunk:
        raise BrokenAnswerError("the server's answer is empty")
    with _open_part(partial, start) as file, _bar(partial.name, start, total) as bar:
        while chunk:
            _write_chunk(file, chunk, partial)
            bar.update(len(chunk))
            chunk = response.read(CHUNK)
    size = partial.stat().st_size
    if total is not None and size != total:
        raise ConnectionError(f"the connection broke after {size} of {total} bytes")


def _announced_size(response, start: int) -> int | None:
    """The size of the whole file, by the answer's own length or a part's `Content-Range`; None if it has neither."""
    length = response.headers.get("Content-Length", "").strip()
    if re.fullmatch(r"\d{1,18}", length):
        return start + int(length)
    whole = response.headers.get("Content-Range", "").rpartition("/")[2].strip() if start else ""
    return int(whole) if re.fullmatch(r"\d{1,18}", whole) else None


def _write_chunk(file: BinaryIO, chunk: bytes, partial: Path) -> None:
    try:
        while chunk:
            chunk = chunk[file.write(chunk) :]
    except OSError as error:
        raise InputError(
            f"{partial} cannot be written ({error.strerror or error}): free some space and run this again, which"
            " continues from this part; or remove it"
        ) from error


def _open_part(partial: Path, start: int) -> BinaryIO:
    """The part, opened to append or to replace. A link is not followed. Nothing is buffered."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_APPEND if start else os.O_TRUNC)
    try:
        return open(os.open(partial, flags, 0o666), "wb", buffering=0)
    except OSError as error:
        raise unwritable(partial, error) from error


def _bar(name: str, start: int, total: int | None) -> tqdm:
    return tqdm(desc=name.removesuffix(".partial"), initial=start, total=total, unit="B", unit_scale=True)


def published_md5(headers: list[str]) -> str | None:
    """The MD5 (base64) among Google's `x-goog-hash` headers, `crc32c=...,md5=...`, or None."""
    parts = [part.strip() for header in headers for part in header.split(",")]
    return next((part.removeprefix("md5=") for part in parts if part.startswith("md5=")), None)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
