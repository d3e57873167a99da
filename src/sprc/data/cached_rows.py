"""What a dataset gives in the place of an image if its features are on a device already."""

from typing import NamedTuple

from torch import Tensor


class CachedRows(NamedTuple):
    """Numbers of images in a table of features on a device: `rows` (B,) int64, or 0-d for one image.

    `FeatureCache.take` gives their features. `default_collate` stacks it, and a loader pins it.
    """

    rows: Tensor
