"""From an image to the model's input frame: pad, resize, crop, normalise."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from lavis.processors.blip_processors import CLIP_MEAN, CLIP_STD
from lavis.processors.rgb import as_rgb
from sprc.core.errors import ImageError, InputError
from sprc.data.images import MOST_PIXELS

# Half a patch, in pixels of the input frame: no patch of its own sees a smaller region.
SMALLEST_SIDE = 7


@dataclass(frozen=True)
class Geometry:
    """How an image reaches the input frame: pad by (horizontal, vertical) on both sides, resize, crop the centre.

    `resized` is (width, height) after the resize; `dim` the side of the square input frame, in pixels.
    """

    padding: tuple[int, int]
    resized: tuple[int, int]
    dim: int

    @property
    def crop_origin(self) -> tuple[int, int]:
        """(left, top) of the crop in the resized image, in pixels."""
        left, top = (round((side - self.dim) / 2) for side in self.resized)
        return left, top

    def to_input(self, raw_boxes: np.ndarray, width: int, height: int) -> np.ndarray:
        """Boxes (n, 4), xyxy in [0, 1] of a raw image of `width` x `height` -> the input frame, not clipped."""
        scale, shift = [], []
        for side, padding, resized, origin in zip(
            (width, height), self.padding, self.resized, self.crop_origin, strict=True
        ):
            factor = resized / (side + 2 * padding)  # input pixels for a raw pixel
            scale.append(side * factor / self.dim)
            shift.append((padding * factor - origin) / self.dim)
        return raw_boxes * (scale * 2) + shift * 2


def input_geometry(width: int, height: int, target_ratio: float, dim: int) -> Geometry:
    """The geometry of an image of `width` x `height` pixels.

    If long side / short side is at least `target_ratio`, the short side is padded up to the long side divided by that
    ratio; a ratio of 1 makes a square. Then the shorter side is resized to `dim`.
    """
    horizontal = vertical = 0
    if target_ratio <= 1 or max(width, height) / min(width, height) >= target_ratio:
        scaled = max(width, height) / max(target_ratio, 1)
        horizontal, vertical = (int(max(scaled - side, 0) / 2) for side in (width, height))
    padded = width + 2 * horizontal, height + 2 * vertical
    short = min(padded)
    new_width, new_height = (dim if side == short else int(dim * side / short) for side in padded)
    return Geometry((horizontal, vertical), (new_width, new_height), dim)


@dataclass(frozen=True)
class InputBoxes:
    """Boxes (n, 4) float32, xyxy in [0, 1] of the input frame, largest first; `kept` numbers them in the raw list.

    `dropped` counts the raw boxes that are too small in the input frame, or outside of it.
    """

    boxes: Tensor
    kept: list[int]
    dropped: int


@dataclass(frozen=True)
class Preprocess:
    """RGB, pad to `target_ratio`, resize bicubic to `dim`, crop the centre, CLIP's mean and std. Picklable.

    RGB conversion comes first, so that the padding is black in a palette image too. `move_boxes` moves boxes likewise.
    """

    target_ratio: float
    dim: int

    def __call__(self, image: Image.Image) -> Tensor:
        """A PIL image of any mode and shape -> (3, dim, dim) float32."""
        pixels = tvf.pil_to_tensor(self.to_frame(image))  # (3, dim, dim) uint8
        return tvf.normalize(pixels.float().div_(255), list(CLIP_MEAN), list(CLIP_STD), inplace=True)

    def to_frame(self, image: Image.Image) -> Image.Image:
        """The image as it stands in the input frame: RGB, `dim` x `dim` pixels.

        Raises ImageError if it would be larger on the way there than an image may be.
        """
        rgb = as_rgb(image)
        geometry = input_geometry(*rgb.size, self.target_ratio, self.dim)
        padded_size = tuple(side + 2 * padding for side, padding in zip(rgb.size, geometry.padding, strict=True))
        for way, (width, height) in (("padded", padded_size), ("resized", geometry.resized)):
            if width * height > MOST_PIXELS:
                size = f"{rgb.width} x {rgb.height} pixels"
                raise ImageError(f"{size}, {way} to {width} x {height}", "crop or shrink it")
        padded = tvf.pad(rgb, list(geometry.padding))
        left, top = geometry.crop_origin
        resized = padded.resize(geometry.resized, Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + self.dim, top + self.dim))

    def move_boxes(self, raw_boxes: Sequence, width: int, height: int) -> InputBoxes:
        """Boxes xyxy in [0, 1] of a raw image of `width` x `height` pixels -> the same boxes in the input frame.

        They are clipped to it. A box whose width or height is then under `SMALLEST_SIDE` pixels is dropped.
        """
        raw = np.asarray(raw_boxes, dtype=np.float64).reshape(-1, 4)
        geometry = input_geometry(width, height, self.target_ratio, self.dim)
        boxes = geometry.to_input(raw, width, height).clip(0, 1)
        sides = boxes[:, 2:] - boxes[:, :2]
        large = (sides * self.dim >= SMALLEST_SIDE).all(axis=1)
        order = np.argsort(-sides.prod(axis=1), kind="stable")
        kept = order[large[order]]
        return InputBoxes(torch.from_numpy(boxes[kept].astype(np.float32)), kept.tolist(), len(raw) - len(kept))


def targetpad_transform(target_ratio: float = 1.25, dim: int = 224) -> Preprocess:
    """SPRC's default: pad images longer than `target_ratio` to that ratio. Raises InputError for another ratio."""
    if not 1 <= target_ratio < math.inf:
        raise InputError(f"`target_ratio` is long side / short side, a number of at least 1, not {target_ratio}")
    return Preprocess(float(target_ratio), dim)


def squarepad_transform(dim: int = 224) -> Preprocess:
    """Pad every image to a square."""
    return Preprocess(1.0, dim)


def build_preprocess(transform: str, target_ratio: float = 1.25, dim: int = 224) -> Preprocess:
    """`targetpad` or `squarepad` by name. Raises InputError for another."""
    if transform == "targetpad":
        return targetpad_transform(target_ratio, dim)
    if transform == "squarepad":
        return squarepad_transform(dim)
    raise InputError(f"unknown transform {transform!r}: use targetpad or squarepad")
