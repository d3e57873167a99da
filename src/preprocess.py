"""From an image to the model's input frame: pad, resize, crop, normalise."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from lavis.common.errors import InputError
from lavis.processors.blip_processors import CLIP_MEAN, CLIP_STD


@dataclass(frozen=True)
class Geometry:
    """How an image reaches the input frame: pad by (horizontal, vertical) on both sides, resize, crop the centre.

    `resized` is (width, height) after the resize; `dim` the side of the square input frame, in pixels.
    """

    padding: tuple[int, int]
    resized: tuple[int, int]
    dim: int


def input_geometry(width: int, height: int, target_ratio: float, dim: int) -> Geometry:
    """The geometry of an image of `width` x `height` pixels.

    Sides whose ratio is below `target_ratio` are left alone; others are padded, the short side up to the long side
    divided by the ratio (1 makes a square). The shorter side is then resized to `dim`.
    """
    horizontal = vertical = 0
    if target_ratio <= 1 or max(width, height) / min(width, height) >= target_ratio:
        scaled = max(width, height) / max(target_ratio, 1)
        horizontal, vertical = (int(max(scaled - side, 0) / 2) for side in (width, height))
    padded = width + 2 * horizontal, height + 2 * vertical
    short = min(padded)
    resized = tuple(dim if side == short else int(dim * side / short) for side in padded)
    return Geometry((horizontal, vertical), resized, dim)


@dataclass(frozen=True)
class Preprocess:
    """RGB, pad to `target_ratio`, resize bicubic to `dim`, crop the centre, CLIP's mean and std. Picklable.

    RGB conversion comes first, so that the padding is black in a palette image too.
    """

    target_ratio: float
    dim: int

    def __call__(self, image: Image.Image) -> Tensor:
        """A PIL image of any mode and shape -> (3, dim, dim) float32."""
        rgb = image.convert("RGB")
        geometry = input_geometry(*rgb.size, self.target_ratio, self.dim)
        padded = tvf.pad(rgb, list(geometry.padding))
        resized = padded.resize(geometry.resized, Image.Resampling.BICUBIC)
        pixels = tvf.pil_to_tensor(tvf.center_crop(resized, [self.dim, self.dim]))  # (3, dim, dim) uint8
        return tvf.normalize(pixels.float().div_(255), list(CLIP_MEAN), list(CLIP_STD), inplace=True)


def targetpad_transform(target_ratio: float = 1.25, dim: int = 224) -> Preprocess:
    """SPRC's default: pad images longer than `target_ratio` to that ratio. Raises InputError for a ratio below 1."""
    if not target_ratio >= 1:
        raise InputError(f"--target-ratio is long side / short side, at least 1, not {target_ratio}")
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
