"""From samples to batches: the one collate function and the loader."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lavis.models.blip2_models.frozen_features import FrozenFeatures
from sprc.data.cached_rows import CachedRows
from sprc.data.loader_workers import prepare_worker
from sprc.data.triplets import RegionBoxes

STACKED = (Tensor, FrozenFeatures, CachedRows)


def collate_fn(batch: list[tuple] | list[dict]) -> list | dict:
    """Samples -> one list per field, in a list for tuples and in a dictionary for dictionaries.

    Images (3, S, S), features (T, D) and rows of a cache are stacked. Captions, names, groups, and boxes, which are
    `RegionBoxes`, arrays, or a field whose name ends in "boxes", stay plain lists.
    """
    if isinstance(batch[0], dict):
        return {name: _collated([sample[name] for sample in batch], name) for name in batch[0]}
    return [_collated(list(field)) for field in zip(*batch, strict=True)]


def _collated(field: list, name: str = "") -> Any:
    is_boxes = isinstance(field[0], RegionBoxes) or name.endswith("boxes")
    return default_collate(field) if isinstance(field[0], STACKED) and not is_boxes else field


def make_loader(dataset: Dataset, batch_size: int, num_workers: int, device: torch.device, **options) -> DataLoader:
    """A loader with the project's collate function; its own generator keeps torch's global random state untouched."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        collate_fn=collate_fn,
        generator=torch.Generator().manual_seed(0),
        persistent_workers=num_workers > 0,
        worker_init_fn=prepare_worker,
        **options,
    )
