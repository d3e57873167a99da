"""Build the feature cache of a list of images, or the part of it that is missing; the layout is in `feature_cache`."""

import hashlib
import json
import logging
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lavis.models import Blip2QformerCirAlignPrompt
from sprc.core.errors import InputError
from sprc.core.files import made_and_held, readable
from sprc.core.process_group import ALONE, World
from sprc.core.reading import expanded
from sprc.data.cache_files import PRECISIONS, map_arrays, open_features, row_checks, unfinished_rows
from sprc.data.feature_cache import FeatureCache
from sprc.data.image_set import ImageSet
from sprc.data.loader_workers import send_queue_errors
from sprc.data.options import CACHE_OFF
from sprc.data.preprocess import Preprocess
from sprc.data.vit_fingerprint import frozen_fingerprint

logger = logging.getLogger(__name__)

BATCH = 32
BATCHES_PER_FLUSH = 16
T = TypeVar("T")


class _Sources(Dataset):
    """The images that are still to be done, with their raw sizes."""

    def __init__(self, dataset: ImageSet, indices: list[int]):
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, Tensor, tuple[int, int]]:
        name = self.dataset.names[self.indices[position]]
        image = self.dataset.load_image(name)
        assert isinstance(image, Tensor)  # the set has no features yet
        return self.indices[position], image, self.dataset.get_image_size(name)


class Caching(Protocol):
    """The settings that `use_feature_cache` needs, of a training or an evaluation."""

    @property
    def feature_cache(self) -> str: ...
    @property
    def cache_precision(self) -> str: ...
    @property
    def cache_device(self) -> str: ...
    @property
    def num_workers(self) -> int: ...


def use_feature_cache(
    config: Caching,
    model: Blip2QformerCirAlignPrompt,
    device: torch.device,
    *datasets: ImageSet,
    world: World = ALONE,
) -> None:
    """Let the datasets give features instead of images, as the configuration says.

    Builds what is not there, every rank its share. Raises InputError if a cache is damaged or cannot be written.
    """
    if config.feature_cache == CACHE_OFF:
        return
    if config.cache_device == "cuda" and device.type != "cuda":
        raise InputError(f"`cache_device` cuda: this run is on {device}; use `cache_device` cpu")
    table = device if config.cache_device == "cuda" else None
    fingerprint = frozen_fingerprint(model)
    for dataset in datasets:
        key = cache_key(dataset, model, fingerprint, config.cache_precision)
        folder = expanded(config.feature_cache) / _key_name(key)
        _complete(CacheBuild(folder, key, dataset, model, device, config.num_workers), world)
        dataset.features = _together(world, partial(FeatureCache, folder, key, table))
        logger.info(
            f"feature cache: {folder}, {len(dataset.names)} images of {dataset.title}; remove it after you replace an"
            " image by one of the same size and time"
        )


def _complete(build: "CacheBuild", world: World) -> None:
    """Build the rows that are not there; of two runs that need them one builds, and the other waits."""
    with ExitStack() as held:

        def unfinished() -> list[int] | None:
            if not world.is_main:
                return None
            held.enter_context(made_and_held(build.folder))
            return unfinished_rows(build.folder, build.key)

        missing = world.share(_together(world, unfinished))
        if missing:
            _together(world, lambda: build.write_rows(missing[world.rank :: world.size]))


def _together(world: World, work: Callable[[], T]) -> T:
    """Do `work` on every rank -> its result. Bad input of one rank is raised on all: none is left waiting for it."""
    outcome: T | InputError
    try:
        outcome = work()
    except InputError as error:
        outcome = error
    errors = [e for e in world.collect(outcome if isinstance(outcome, InputError) else None) if e is not None]
    if isinstance(outcome, InputError) or errors:
        raise outcome if isinstance(outcome, InputError) else errors[0]
    return outcome


def cache_key(dataset: ImageSet, model: Blip2QformerCirAlignPrompt, fingerprint: str, precision: str) -> dict:
    """Everything that the features depend on: a change of any of it makes another cache."""
    vision, preprocess = model.config.vision, cast(Preprocess, dataset.preprocess)
    images = hashlib.sha256()
    for name, place in dataset.image_paths.items():
        with readable(dataset.root / place, "copy or download it again"):
            stat = (dataset.root / place).stat()
        images.update(f"{name}\n{place}\n{stat.st_size}\n{stat.st_mtime_ns}\n".encode())
    return {
        "version": 2,
        "vit": fingerprint,
        "preprocess": [preprocess.target_ratio, preprocess.dim],
        "precision": precision,
        "half_vit": next(model.visual_encoder.parameters()).is_cuda,
        "images": images.hexdigest(),
        "count": len(dataset.names),
        "tokens": 1 + vision.grid_size**2,
        "width": vision.width,
    }


def _key_name(key: dict) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class CacheBuild:
    """A cache to be built: its folder and key, the images, and what computes their features."""

    folder: Path
    key: dict
    dataset: ImageSet
    model: Blip2QformerCirAlignPrompt
    device: torch.device
    num_workers: int

    def write_rows(self, rows: list[int]) -> None:
        """Compute and write these rows. Raises InputError for a value that the cache's precision cannot hold."""
        files, was_training = _Files(self.folder, self.key), self.model.training
        loader = self._loader(rows)
        self.model.eval()
        start = time.perf_counter()
        bar = tqdm(loader, desc=f"features of {self.dataset.title}", dynamic_ncols=True)
        for number, batch in enumerate(bar, start=1):
            self._write_batch(files, batch)
            if number == 1:
                minutes = (time.perf_counter() - start) * len(loader) / 60
                logger.info(f"feature cache: about {minutes:.1f} minutes for {len(rows)} images")
            if number % BATCHES_PER_FLUSH == 0 or number == len(loader):
                files.flush()
        self.model.train(was_training)

    def _loader(self, rows: list[int]) -> DataLoader:
        sources = _Sources(self.dataset, rows)
        return DataLoader(
            sources, BATCH, num_workers=self.num_workers, collate_fn=list, worker_init_fn=send_queue_errors
        )

    def _write_batch(self, files: "_Files", batch: list[tuple[int, Tensor, tuple[int, int]]]) -> None:
        images = torch.stack([image for _, image, _ in batch]).to(self.device)
        features = self.model.encode_frozen(images).float().cpu().numpy()  # (B, T, D)
        for (index, _, size), row in zip(batch, features, strict=True):
            files.write(index, _store(row, self.key["precision"], self.dataset.names[index]), size)


class _Files:
    """The files of a cache, mapped for writing: every process writes its own rows of them."""

    def __init__(self, folder: Path, key: dict):
        self.key, self.features = key, open_features(folder, key, "r+")
        self.arrays = map_arrays(folder, key)
        self.written: list[int] = []

    def write(self, index: int, row: np.ndarray, size: tuple[int, int]) -> None:
        crc = zlib.crc32(row.data)
        values = {"sizes": size, "crc": crc, "check": row_checks(self.key, [index], np.array([size]), crc)[0]}
        self.features[index] = row
        for name, value in values.items():
            self.arrays[name][index] = value
        self.written.append(index)

    def flush(self) -> None:
        """First the rows and what describes them, then what says that they are there."""
        for array in (self.features, *(self.arrays[name] for name in ("sizes", "crc", "check"))):
            array.flush()
        self.arrays["done"][self.written] = True
        self.arrays["done"].flush()
        self.written = []


def _store(row: np.ndarray, precision: str, name: str) -> np.ndarray:
    """A row in the cache's type. Raises InputError for a value that it cannot hold."""
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(row.astype(PRECISIONS[precision]))
    if not np.isfinite(stored).all():
        raise InputError(f"the features of image {name!r} reach {np.abs(row).max():.3g}, beyond {precision}: use fp32")
    return stored
