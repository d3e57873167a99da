"""Boxes of what stands out in an image, by its spectral residual (Hou & Zhang, CVPR 2007). No weights, no OpenCV.

The spectral residual tells where something stands out, but its map is too blurred to say how far it reaches. So regions
are what differs in colour from the image's median colour, and the residual chooses among them.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from lavis.datasets.region_boxes import Region
from lavis.processors.rgb import as_rgb
from sprc.boxes.sizes import box_area, largest_first
from sprc.core.errors import ImageError
from sprc.data.images import open_rgb

WORKING_SIDE = 128  # pixels of the longer side in which all of this is computed
RESIDUAL_BLUR = 1.5
COLOUR_BLUR = 0.7
# A region is kept if its highest saliency is so many times the image's mean.
TIMES_MEAN = 2.0
EIGHT_NEIGHBOURS = np.ones((3, 3))


def saliency_boxes(image: Image.Image, min_area: float = 0.005, max_boxes: int = 5) -> list[Region]:
    """The salient regions of an image, largest first; `score` is a region's saliency over the image's highest.

    Args:
        image: of any mode and size.
        min_area: smallest area of a box, as a part of the image's.
        max_boxes: how many at most.
    """
    pixels = _small(image)  # (h, w, 3)
    saliency, distinct = saliency_map(pixels), _distinct_pixels(pixels)
    labels, count = ndimage.label(distinct, EIGHT_NEIGHBOURS)
    if count == 0:
        return []
    peaks = ndimage.maximum(saliency, labels, range(1, count + 1))
    regions = []
    for (rows, columns), peak in zip(ndimage.find_objects(labels), peaks, strict=True):
        box = _box(rows, columns, pixels.shape)
        if peak >= TIMES_MEAN * saliency.mean() and box_area(box) >= min_area:
            regions.append(Region(box, score=round(float(peak / saliency.max()), 4)))
    return largest_first(regions)[:max_boxes]


def saliency_map(pixels: np.ndarray) -> np.ndarray:
    """(h, w, 3) colours in [0, 1] -> (h, w): the mean spectral residual of brightness and two colour differences."""
    red, green, blue = (pixels[..., channel] for channel in range(3))
    channels = (pixels.mean(axis=2), red - green, blue - (red + green) / 2)
    maps = [spectral_residual(channel) for channel in channels]
    return sum(residual / (residual.mean() + 1e-12) for residual in maps) / len(maps)


def spectral_residual(channel: np.ndarray) -> np.ndarray:
    """(h, w) -> (h, w): what is left of an image once the average shape of its log spectrum is taken away."""
    spectrum = np.fft.rfft2(channel)
    log_amplitude = np.log(np.abs(spectrum) + 1e-8)
    residual = log_amplitude - ndimage.uniform_filter(log_amplitude, 3, mode="nearest")
    image = np.fft.irfft2(np.exp(residual + 1j * np.angle(spectrum)), channel.shape)
    return ndimage.gaussian_filter(image**2, RESIDUAL_BLUR)


def _small(image: Image.Image) -> np.ndarray:
    scale = WORKING_SIDE / max(image.size)
    width, height = (max(8, round(side * scale)) for side in image.size)
    return np.asarray(as_rgb(image).resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255


def _distinct_pixels(pixels: np.ndarray) -> np.ndarray:
    """(h, w) bool: pixels whose colour is far from the median colour, by Otsu's threshold on the distance."""
    background = np.median(pixels.reshape(-1, 3), axis=0)
    smooth = ndimage.gaussian_filter(pixels, (COLOUR_BLUR, COLOUR_BLUR, 0))
    distance = np.sqrt(((smooth - background) ** 2).sum(axis=2))
    return distance > otsu_threshold(distance.ravel())


def otsu_threshold(values: np.ndarray, bins: int = 64) -> float:
    """The threshold that parts `values` into two classes of the greatest variance between them (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below, mass = counts.cumsum(), (counts * centres).cumsum()
    above = below[-1] - below
    parted = (below > 0) & (above > 0)
    variance = np.zeros(bins)
    means_apart = mass[parted] / below[parted] - (mass[-1] - mass[parted]) / above[parted]
    variance[parted] = below[parted] * above[parted] * means_apart**2
    return float(edges[1:][variance.argmax()]) if parted.any() else float(values.max())


def _box(rows: slice, columns: slice, shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    height, width = shape[:2]
    return columns.start / width, rows.start / height, columns.stop / width, rows.stop / height


def boxes_of_file(path: Path, min_area: float, max_boxes: int) -> list[Region] | str:
    """The boxes of an image file, in [0, 1] of its stored frame; what is wrong with it if it cannot be read."""
    try:
        image = open_rgb(path)
    except ImageError as error:
        return str(error)
    return saliency_boxes(image, min_area, max_boxes)
