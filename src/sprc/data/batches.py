"""From samples to batches: the one collate function and the loader."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lavis.models.blip2_models.frozen_features import FrozenFeatures
from sprc.data.cached_rows import CachedRows
from sprc.data.loader_workers import prepare_worker

STACKED = (Tensor, FrozenFeatures, CachedRows)
BOX_FIELDS = ("ref_boxes", "tgt_boxes")  # of a tuple with names; as many of an image as it has


def collate_fn(batch: list[tuple] | list[dict]) -> list | dict:
    """Samples -> one list per field, in a list for tuples and in a dictionary for dictionaries.

    Images (3, S, S), features (T, D) and rows of a cache are stacked. Captions, names, groups, boxes that are arrays,
    and the fields `BOX_FIELDS` of a tuple with names stay plain lists.
    """
    if isinstance(batch[0], dict):
        return {name: _collated([sample[name] for sample in batch]) for name in batch[0]}
    names = getattr(batch[0], "_fields", ())
    boxes = [names.index(name) for name in BOX_FIELDS if name in names]
    fields = zip(*batch, strict=True)
    return [list(field) if place in boxes else _collated(list(field)) for place, field in enumerate(fields)]


def _collated(field: list) -> Any:
    return default_collate(field) if isinstance(field[0], STACKED) else field


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
