"""Settings that say which data is read, for training and evaluation alike."""

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
class DataOptions:
    """A benchmark, its folder, and how its images are read."""

    dataset: str = option("CIRR or FashionIQ, in any case", default=...)
    data_path: Path | None = option("folder of the dataset (default: cirr_dataset or fashionIQ_dataset, here)")
    gallery: str | None = option(
        "FashionIQ: rank every image of the split list, or with captions only those that captions name (default: split)"
    )
    transform: str = option("how an image is padded", default="targetpad", choices=("targetpad", "squarepad"))
    target_ratio: float = option("targetpad: longer images are padded to this ratio", default=1.25)
    num_workers: int = option("processes that load images", default=4, least=0)


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """The feature cache: a folder for the frozen ViT's output, or `off`."""

    feature_cache: str = option("keep the frozen ViT's output here", default=CACHE_OFF, metavar="DIR|off")
    cache_precision: str = option(
        "of the feature cache", default="fp16", choices=("fp16", "fp32"), only_with="feature_cache"
    )
    cache_device: str = option(
        "read the cache from disk, or keep it on the GPU",
        default="cpu",
        choices=("cpu", "cuda"),
        only_with="feature_cache",
    )
