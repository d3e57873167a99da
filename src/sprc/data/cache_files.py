"""The files of a feature cache: make, open and check them. `feature_cache` says how they are laid out."""

import errno
import json
import logging
import os
import shutil
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np

from sprc.core.errors import InputError
from sprc.core.files import atomic_writer, read_bytes, read_json, unwritable, write_atomically

logger = logging.getLogger(__name__)

PRECISIONS = {"fp16": np.float16, "fp32": np.float32}
# Name of a small file of a cache -> columns and type of its array.
ARRAYS = {"sizes": ((2,), "<i4"), "crc": ((), "<u4"), "check": ((), "<u4"), "done": ((), "|b1")}
# What the check of a row covers; its seed is the cache's key.
CHECKED = np.dtype([("index", "<u4"), ("size", "<i4", 2), ("crc", "<u4")])
NO_ALLOCATION = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
BLOCK = 2**20


def open_arrays(folder: Path, key: dict) -> dict[str, np.ndarray]:
    """Name -> array of every small file of a cache, as `ARRAYS`.

    Raises InputError that names the folder if a file is not the array that it should be. Raises one that names the
    image if its size, or the checksum of its features, is not what was written.
    """
    arrays = {name: _read_array(folder, name, key["count"]) for name in ARRAYS}
    done = np.flatnonzero(arrays["done"])
    wrong = done[row_checks(key, done, arrays["sizes"][done], arrays["crc"][done]) != arrays["check"][done]]
    if len(wrong):
        raise InputError(f"the feature cache {folder} is damaged at image {wrong[0]}: remove that folder")
    return arrays


def map_arrays(folder: Path, key: dict) -> dict[str, np.memmap]:
    """As `open_arrays`, mapped for writing. Rows are not checked, since other ranks write theirs at the same time."""
    found = {}
    for name, (columns, dtype) in ARRAYS.items():
        array = _read_array(folder, name, key["count"])
        offset = len(_header(columns, dtype, key["count"]))
        found[name] = np.memmap(folder / f"{name}.npy", array.dtype, "r+", offset, array.shape)
    return found


def row_checks(key: dict, indices, sizes: np.ndarray, crc) -> np.ndarray:
    """CRC-32 over index, size (n, 2) and features' CRC-32 of every row -> (n,) uint32; it differs between caches."""
    seed = zlib.crc32(json.dumps(key, sort_keys=True).encode())
    table = np.empty(len(indices), CHECKED)
    table["index"], table["size"], table["crc"] = indices, sizes, crc
    content, length = table.tobytes(), CHECKED.itemsize
    found = [zlib.crc32(content[start : start + length], seed) for start in range(0, len(content), length)]
    return np.array(found, np.uint32)


def _header(columns: tuple[int, ...], dtype: str, count: int) -> bytes:
    """The header of a .npy file, version 1.0: the same with every version of numpy."""
    words = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {(count, *columns)}, }}"
    words += " " * (-(len(words) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(words).to_bytes(2, "little") + words.encode()


def _read_array(folder: Path, name: str, count: int) -> np.ndarray:
    path, (columns, dtype) = folder / f"{name}.npy", ARRAYS[name]
    content, header = read_bytes(path, f"remove {folder}"), _header(columns, dtype, count)
    array = np.frombuffer(content[len(header) :], np.uint8)
    expected = count * int(np.prod(columns, dtype=int)) * np.dtype(dtype).itemsize
    whole = content.startswith(header) and len(array) == expected
    if not whole or (dtype == "|b1" and (array > 1).any()):
        raise InputError(f"{path} is not the array that it should be: remove {folder}")
    return array.view(dtype).reshape(count, *columns)


def features_shape(key: dict) -> tuple[int, int, int]:
    return key["count"], key["tokens"], key["width"]


def features_size(key: dict) -> int:
    """The bytes of `features.bin`."""
    return int(np.prod(features_shape(key), dtype=np.int64)) * np.dtype(PRECISIONS[key["precision"]]).itemsize


def open_features(folder: Path, key: dict, mode: Literal["r", "r+"]) -> np.memmap:
    """Map the features, (N, T, D). Raises InputError if the file is missing or not of its size."""
    path, expected = folder / "features.bin", features_size(key)
    if not path.is_file() or path.stat().st_size != expected:
        raise InputError(f"{path} has not the {expected} bytes that it should: remove {folder}")
    return np.memmap(path, dtype=PRECISIONS[key["precision"]], mode=mode, shape=features_shape(key))


def unfinished_rows(folder: Path, key: dict) -> list[int]:
    """Make the files if they do not exist -> the rows that are not done.

    All the space is taken first: if the disk filled later, the process would end without a message (SIGBUS). Raises
    InputError if there is too little space, or as `open_arrays`.
    """
    made = os.path.lexists(folder / "key.json")
    if made and read_json(folder / "key.json", dict, f"remove {folder}") != key:
        raise InputError(f"{folder / 'key.json'} is not the key of this cache: remove {folder}")
    if not made:
        _make_files(folder, key)
    missing = np.flatnonzero(~open_arrays(folder, key)["done"]).tolist()
    if made and missing:
        open_features(folder, key, "r")
        _allocate(folder, features_size(key))
    return missing


def _make_files(folder: Path, key: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    count, size, free = key["count"], features_size(key), shutil.disk_usage(folder).free
    logger.info(f"feature cache: {count} images, {size / 1e9:.2f} GB in {folder}, {free / 1e9:.1f} GB free")
    if size > 0.95 * free:
        raise InputError(f"the feature cache needs {size / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free")
    try:
        _allocate(folder, size, os.O_TRUNC)
        for name, (columns, dtype) in ARRAYS.items():
            with atomic_writer(folder / f"{name}.npy") as file:
                file.write(_header(columns, dtype, count) + np.zeros((count, *columns), dtype).tobytes())
        write_atomically(folder / "key.json", json.dumps(key, sort_keys=True))
    except BaseException:
        for name in ("features.bin", *(f"{name}.npy" for name in ARRAYS)):
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        raise


def _allocate(folder: Path, size: int, flags: int = 0) -> None:
    """Take the space of `features.bin`; what is in it stays."""
    handle = None
    try:
        handle = os.open(folder / "features.bin", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | flags, 0o666)
        try:
            os.posix_fallocate(handle, 0, size)
        except OSError as error:
            if error.errno not in NO_ALLOCATION:
                raise
            _write_again(handle, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"the feature cache needs {size / 1e9:.3g} GB, which {folder} has not ({error.strerror}): free some"
                " space, or give another `feature_cache`"
            ) from error
        raise unwritable(folder / "features.bin", error) from error
    finally:
        if handle is not None:
            os.close(handle)


def _write_again(handle: int, size: int) -> None:
    """Write every block of a file with its own content: takes the space on a file system without `fallocate`."""
    os.ftruncate(handle, size)
    for start in range(0, size, BLOCK):
        block = os.pread(handle, min(BLOCK, size - start), start)
        while block:
            written = os.pwrite(handle, block, start)
            start, block = start + written, block[written:]
    os.fsync(handle)
