"""Any image in RGB: the one conversion, for training, boxes and pictures."""

import numpy as np
from PIL import Image

from sprc.core.errors import ImageError


def as_rgb(image: Image.Image) -> Image.Image:
    """Any image in RGB, 16-bit grey by its upper 8 bits. Raises ImageError for numbers without a known range.

    Pillow's own conversion would clip what is above 255, and give a white image.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"32-bit grey, mode {image.mode}, has no known range", "save it with 8 bits")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"mode {image.mode} has no conversion to RGB", "save it in RGB") from error
