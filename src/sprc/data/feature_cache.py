"""The frozen ViT's output for every image of a list, on disk: preprocessing and ViT never change during a training.

A cache is a folder named by the SHA-256 of its key (ViT, preprocess, precision, image list), with

    key.json      the key
    features.bin  (N, T, D) float16 or float32, before `ln_vision`, row after row
    sizes.npy     (N, 2) width and height of the raw images, so that boxes need no image
    crc.npy       (N,) CRC-32 of each row
    check.npy     (N,) CRC-32 over the row's index, size and CRC-32, seeded with the key's
    done.npy      (N,) whether a row is done: set after all of the above is on the disk

Damage of any of them is found: of the small files when the cache is opened, of a row when it is read. A replaced image
is not found if the new one has the same name, size in bytes and time of modification: its old features are used until
the folder is removed.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lavis.models.blip2_models.frozen_features import FrozenFeatures
from sprc.core.errors import InputError
from sprc.data.cache_files import open_arrays, open_features
from sprc.data.cached_rows import CachedRows


class FeatureCache:
    """A complete cache, opened for reading. Raises InputError if it is incomplete or damaged."""

    def __init__(self, folder: Path, key: dict, table_device: torch.device | None = None):
        self.folder, self.key = folder, key
        arrays = open_arrays(folder, key)
        if not arrays["done"].all():
            raise InputError(f"the feature cache {folder} is not complete: run this again to continue it")
        self.sizes, self.crc = arrays["sizes"], arrays["crc"]
        self.features = open_features(folder, key, "r")
        self.table = None if table_device is None else self._table(table_device)
        self.gives_rows = self.table is not None

    def __getstate__(self) -> dict:
        """For a loader's worker that is not forked: it maps the file itself, and does not use the table."""
        return self.__dict__ | {"features": None, "table": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = state | {"features": open_features(state["folder"], state["key"], "r")}

    def __getitem__(self, index: int) -> FrozenFeatures | CachedRows:
        """One image's features (T, D); or with a table on a device its place there, for `take`."""
        if self.gives_rows:
            return CachedRows(torch.tensor(index))
        row = np.array(self.features[index])
        self._check(index, row)
        return FrozenFeatures(torch.from_numpy(row))

    def take(self, images: CachedRows) -> FrozenFeatures:
        """B places in the table -> their features (B, T, D), on its device."""
        assert self.table is not None
        return FrozenFeatures(self.table[images.rows.to(self.table.device, non_blocking=True)])  # pinned by the loader

    def _check(self, index: int, row: np.ndarray) -> None:
        if zlib.crc32(row.data) != self.crc[index]:
            raise InputError(f"the feature cache {self.folder} is damaged at image {index}: remove that folder")

    def _table(self, device: torch.device) -> Tensor:
        """All features on a device. Raises InputError if they do not fit."""
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if self.features.nbytes > 0.8 * free:
                raise InputError(
                    f"`cache_device` cuda: the cache has {self.features.nbytes / 1e9:.1f} GB, and {device} has"
                    f" {free / 1e9:.1f} GB free: use `cache_device` cpu"
                )
        table = torch.empty(self.features.shape, dtype=torch.from_numpy(self.features[:0].copy()).dtype, device=device)
        for index in range(len(table)):
            row = np.array(self.features[index])
            self._check(index, row)
            table[index] = torch.from_numpy(row)
        return table
