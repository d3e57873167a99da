"""Heat maps: a grid of numbers on the model's input frame, drawn over the raw image.

The input frame is the raw image padded, resized and cropped (`sprc.data.preprocess`). What was cropped away was not
seen: it stays as it is. What was padded has no place on the raw image.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from sprc.data.preprocess import Preprocess, input_geometry

COLOURS = "inferno"  # perceptually uniform, from dark to bright
ALPHA = (0.25, 0.65)  # opacity without heat, and at the maximum: the image stays readable


@dataclass(frozen=True)
class HeatMap:
    """`values` (g, g), rows from top to bottom, none negative, over the input frame that `preprocess` makes."""

    values: np.ndarray
    preprocess: Preprocess


def draw_heat_map(
    picture: Image.Image, heat: HeatMap, raw_size: tuple[int, int], alpha: tuple[float, float] = ALPHA
) -> Image.Image:
    """A picture of a raw image with its heat map blended over it: RGB, of the picture's size.

    `raw_size` is the raw image's own (width, height) in pixels, of which the picture may be a smaller copy. `alpha` is
    the opacity where there is no heat, and at the maximum. What the input frame lacks keeps its pixels.
    """
    from matplotlib import colormaps  # slow to import

    heights, seen = on_picture(heat, raw_size, picture.size)
    colours = colormaps[COLOURS](heights)[..., :3] * 255  # (h, w) -> (h, w, 3)
    opacity = np.where(seen, alpha[0] + (alpha[1] - alpha[0]) * heights, 0.0)[..., None]
    pixels = np.asarray(picture.convert("RGB")) * (1 - opacity) + colours * opacity
    return Image.fromarray(pixels.round().astype(np.uint8))


def on_picture(heat: HeatMap, raw_size: tuple[int, int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The heat at every pixel of a picture of `size` (w, h): (h, w) float, 1 at the grid's maximum, 0 if unseen.

    The second array (h, w), bool, says which pixels the input frame has. Values between centres of cells are bilinear.
    """
    preprocess = heat.preprocess
    geometry = input_geometry(*raw_size, preprocess.target_ratio, preprocess.dim)
    left, top, right, bottom = geometry.to_input(np.array([[0.0, 0.0, 1.0, 1.0]]), *raw_size)[0]
    columns, seen_x = _cell_weights(left, right, size[0], heat.values.shape[1])  # (w, g), (w,)
    rows, seen_y = _cell_weights(top, bottom, size[1], heat.values.shape[0])  # (h, g), (h,)
    seen = seen_y[:, None] & seen_x[None, :]
    greatest = float(heat.values.max())
    heights = rows @ (heat.values / greatest if greatest > 0 else heat.values) @ columns.T  # -> (h, w)
    return np.where(seen, heights, 0.0), seen


def _cell_weights(start: float, end: float, pixels: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Along one axis of the raw image, which covers `start` to `end` of the input frame: each pixel's share of the
    cells (pixels, cells), bilinear between their centres, and whether it lies in the frame (pixels,).
    """
    place = start + (end - start) * (np.arange(pixels) + 0.5) / pixels  # in [0, 1] of the input frame, or outside
    in_cells = np.clip(place * cells - 0.5, 0, cells - 1)
    weights = np.maximum(0, 1 - np.abs(in_cells[:, None] - np.arange(cells)))
    return weights, (place >= 0) & (place <= 1)
