"""Settings of data that training and evaluation share: the feature cache, and the boxes."""

from dataclasses import dataclass
from pathlib import Path

from sprc.core.options import option

CACHE_OFF = "off"
MAX_REGIONS = 5


@dataclass(frozen=True)
class BoxOptions:
    """The boxes of the training images: a file, and the most regions of an image."""

    box_file: Path
    max_regions: int = MAX_REGIONS


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """The feature cache: a folder for the frozen ViT's output, or `off`."""

    feature_cache: str = option(
        "keep the frozen ViT's output here",
        default=CACHE_OFF,
        metavar="DIR|off",
        path_if=lambda text: text != CACHE_OFF,
    )
    cache_precision: str = option(
        "of the feature cache", default="fp16", choices=("fp16", "fp32"), only_with="feature_cache"
    )
    cache_device: str = option(
        "read the cache from disk, or keep it on the GPU",
        default="cpu",
        choices=("cpu", "cuda"),
        only_with="feature_cache",
    )
