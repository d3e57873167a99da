"""The one way to open an image file: RGB in the stored frame, of the formats in `FORMATS`, with every fault named.

The stored frame is that of the file's pixels: an EXIF orientation is never applied, as in upstream's code. A TIFF is
the exception: Pillow turns its pixels and its size on opening. All readers here agree on it.
"""

import errno
import logging
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from lavis.processors.rgb import as_rgb
from sprc.core.errors import ImageError, InputError, first_line
from sprc.data.png_chunks import has_late_metadata

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # with JPEG also MPO, which cameras store as .jpg
# Pillow refuses to open more. It warns from half of this on, but reads such an image correctly.
MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
FIXES = {
    errno.EACCES: "make it readable",
    errno.EPERM: "make it readable",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit of open files",
}
NOT_APPLIED = (
    "It is applied nowhere: training, validation and boxes see the pixels as they are stored. If that is not wanted,"
    " turn the files first, for example with ImageMagick: mogrify -auto-orient"
)
SAVE_AS = "save it as PNG or JPEG"
READERS = 16  # threads of a header pass: they wait for the disk

# Pillow's warnings show a line of source. Here an image is read correctly, or an ImageError says why not.
for category in (UserWarning, RuntimeWarning):  # the second is that of Image.DecompressionBombWarning
    warnings.filterwarnings("ignore", category=category, module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else Pillow's errors go to stderr, without a file's name


def open_rgb(path: str | Path) -> Image.Image:
    """The whole image in RGB, in the stored frame, without any tag by which a reader could turn it.

    Raises ImageError if the file cannot be read; `naming_image` adds which file it is.
    """
    with _opened(path) as image:
        image.load()
        image.info = {}  # before the conversion, which would warn of some kinds of transparency
        return as_rgb(image)


def open_small(path: str | Path, side: int) -> Image.Image:
    """A copy of what `open_rgb` gives, of at most `side` pixels a side. Raises ImageError as it.

    A large JPEG is decoded at a lower resolution, which takes a fraction of the time.
    """
    with _opened(path) as image:
        image.draft(None, (2 * side, 2 * side))
        image.load()
        image.info = {}
        small = as_rgb(image)
        small.thumbnail((side, side))
        return small


def stored_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of what `open_rgb` gives, from the file's header alone. Raises ImageError as it."""
    with _opened(path) as image:
        return image.size


def orientation(path: str | Path) -> int:
    """The orientation by EXIF or XMP, 1 to 8; 1 if there is none. Raises ImageError as `stored_size`.

    Pixels are decoded only for a PNG with metadata after them.
    """
    with _opened(path) as image:
        return _orientation(image)


@contextmanager
def naming_image(name: str, path: Path) -> Iterator[None]:
    """Within this context an ImageError becomes an InputError that names the image."""
    try:
        yield
    except ImageError as error:
        raise InputError(f"image {name!r} at {path} cannot be read ({error.reason}): {error.fix}") from error


def orientations(paths: Iterable[str | Path]) -> list[int | ImageError]:
    """`orientation` of every file, or its ImageError, in order. Threads read the headers."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(_orientation_or_error, paths))


def is_tagged(found: int | ImageError) -> bool:
    """Whether a file says that its stored frame is not upright."""
    return found in range(2, 9)


def _orientation_or_error(path: str | Path) -> int | ImageError:
    try:
        return orientation(path)
    except ImageError as error:
        return error


@contextmanager
def _opened(path: str | Path) -> Iterator[ImageFile.ImageFile]:
    """The image file, its header read. Whatever Pillow raises, here or within the context, becomes an ImageError."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("it is no regular file")  # to open a FIFO would wait for its writer
        if status.st_size == 0:
            raise ImageError("it is empty")
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(path) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"it has more than {MOST_PIXELS} pixels", "shrink it") from error
    except OSError as error:
        raise ImageError(
            error.strerror or str(error), FIXES.get(error.errno or 0, "copy or download it again")
        ) from error
    except Exception as error:  # a damaged file makes Pillow's decoders raise errors of many types
        raise ImageError(f"it is damaged, {type(error).__name__}: {first_line(error)}") from error


def _unidentified(path: str | Path) -> ImageError:
    """The error for a file that is no image of `FORMATS`. Its first bytes say what it is; no other decoder runs."""
    with open(path, "rb") as file:
        start = file.read(16).ljust(16, b"\0")
    Image.init()
    fitting = [name for name, (_, accepts) in Image.OPEN.items() if accepts is not None and accepts(start)]
    if not fitting:
        return ImageError(f"it is of a format that is not read here, none of {', '.join(FORMATS)}")
    if fitting[0] in FORMATS:
        return ImageError(f"it begins like a {fitting[0]}, but is damaged")
    return ImageError(f"it is of format {fitting[0]}, which is not read here", SAVE_AS)


def _orientation(image: ImageFile.ImageFile) -> int:
    if image.format == "TIFF":
        return 1
    if image.format == "PNG" and has_late_metadata(image.filename):
        image.load()
    try:
        # The class's own: that of PngImageFile decodes the whole image first.
        found = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises errors of many types; no reader applies tags that it cannot read
        return 1
    return found if found in range(1, 9) else 1
