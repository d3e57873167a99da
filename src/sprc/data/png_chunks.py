"""The chunks of a PNG file, without its pixels: what a pass over many headers can afford to read."""

import os
import struct
from io import FileIO

SIGNATURE_BYTES = 8
CHUNK_BYTES = 12  # of a chunk, beside its content: length, kind and CRC
METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # Pillow finds an orientation in each of them


def has_late_metadata(path: str | bytes) -> bool:
    """Whether a PNG has metadata after its pixels, which Pillow meets only while it decodes them.

    The file is read from chunk to chunk without a buffer. The pixels are leapt over, and contents are not read.
    """
    after_pixels, place = False, SIGNATURE_BYTES
    with open(path, "rb", buffering=0) as file:
        while (chunk := chunk_at(file, place)) is not None:
            length, kind = chunk
            if after_pixels and kind in METADATA:
                return True
            if kind == b"IDAT" and not after_pixels:
                after_pixels = True
                place = _last_pixels(file, place, length + CHUNK_BYTES)
            else:
                place += length + CHUNK_BYTES
    return False


def chunk_at(file: FileIO, place: int) -> tuple[int, bytes] | None:
    """(length of the content, kind) of the chunk at `place`; None if there is none."""
    file.seek(place)
    head = file.read(8)
    return struct.unpack(">I4s", head) if len(head) == 8 and head[4:].isalpha() else None


def _last_pixels(file: FileIO, place: int, step: int) -> int:
    """The place of the last chunk of pixels that lies whole steps after the first one, at `place`.

    It is found by bisection. The chunks of pixels follow each other, and all but the last have one length: every
    encoder writes them so.
    """
    low, high = 0, (os.fstat(file.fileno()).st_size - place) // step
    middle = high  # the usual place
    while low < high:
        chunk = chunk_at(file, place + middle * step)
        if chunk is not None and chunk[1] == b"IDAT":
            low = middle
        else:
            high = middle - 1
        middle = (low + high + 1) // 2
    return place + low * step
