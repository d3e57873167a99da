"""The frozen ViT's output for every image of a list, on disk: preprocessing and ViT never change during a training.

A cache is a folder named by the SHA-256 of its key (ViT, preprocess, precision, image list), with

    key.json      the key
    features.bin  (N, T, D) float16 or float32, before `ln_vision`, row after row
    sizes.npy     (N, 2) width and height of the raw images, so that boxes need no image
    crc.npy       (N,) CRC-32 of each row
    check.npy     (N,) CRC-32 over the row's index, size and CRC-32, seeded with the key's
    done.npy      (N,) whether a row is done: set after all of the above is on the disk

Damage of any of them is found: of the small files when the cache is opened, of a row when it is read. What is not
found is an image that was replaced by one of the same name, size in bytes and time of modification: its old features
are used until the folder is removed.
"""

import hashlib
import json
import logging
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data_utils import ImageDataset
from lavis.models.blip2_models.frozen_features import FrozenFeatures
from sprc.core.errors import InputError
from sprc.core.files import made_and_held, readable
from sprc.core.process_group import ALONE, World
from sprc.data.cache_files import PRECISIONS, map_arrays, open_arrays, open_features, row_checks, unfinished_rows
from sprc.data.cached_rows import CachedRows
from sprc.data.loader_workers import send_queue_errors
from sprc.data.vit_fingerprint import frozen_fingerprint

logger = logging.getLogger(__name__)

BATCH = 32
BATCHES_PER_FLUSH = 16


class FeatureCache:
    """A complete cache, opened for reading. Raises InputError where it is incomplete or damaged."""

    def __init__(self, folder: Path, key: dict, table_device: torch.device | None = None):
        self.folder, self.key = folder, key
        arrays = open_arrays(folder, key)
        if not arrays["done"].all():
            raise InputError(f"the feature cache {folder} is not complete: run this again to go on with it")
        self.sizes, self.crc = arrays["sizes"], arrays["crc"]
        self.features = open_features(folder, key, "r")
        self.table = None if table_device is None else self._table(table_device)
        self.gives_rows = self.table is not None

    def __getstate__(self) -> dict:
        """For a loader's worker, where it is not forked: it maps the file itself, and has no use for the table."""
        return self.__dict__ | {"features": None, "table": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = state | {"features": open_features(state["folder"], state["key"], "r")}

    def __getitem__(self, index: int) -> FrozenFeatures | CachedRows:
        """One image's features (T, D); with a table on a device its place there alone, for `take`."""
        if self.gives_rows:
            return CachedRows(torch.tensor(index))
        row = np.array(self.features[index])
        self._check(index, row)
        return FrozenFeatures(torch.from_numpy(row))

    def take(self, images: CachedRows) -> FrozenFeatures:
        """B places -> features (B, T, D) out of the table."""
        return FrozenFeatures(self.table[images.rows.to(self.table.device, non_blocking=True)])  # pinned by the loader

    def _check(self, index: int, row: np.ndarray) -> None:
        if zlib.crc32(row) != self.crc[index]:
            raise InputError(f"the feature cache {self.folder} is damaged at image {index}: remove that folder")

    def _table(self, device: torch.device) -> Tensor:
        """All features on a device. Raises InputError where they do not fit."""
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


class _Sources(Dataset):
    """The images that are still to be done, with their raw sizes."""

    def __init__(self, dataset: ImageDataset, indices: list[int]):
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, Tensor, tuple[int, int]]:
        name = self.dataset.names[self.indices[position]]
        return self.indices[position], self.dataset.load_image(name), self.dataset.get_image_size(name)


def use_feature_cache(
    config, model: nn.Module, device: torch.device, *datasets: ImageDataset, world: World = ALONE
) -> None:
    """Let the datasets give features instead of images, as the configuration says; builds what is not there, every
    rank its share.
    """
    if config.feature_cache == "off":
        return
    if config.cache_device == "cuda" and device.type != "cuda":
        raise InputError(f"`cache_device` cuda: this run is on {device}; use `cache_device` cpu")
    table = device if config.cache_device == "cuda" else None
    fingerprint = frozen_fingerprint(model)
    for dataset in datasets:
        key = cache_key(dataset, model, fingerprint, config.cache_precision)
        folder = Path(config.feature_cache).expanduser() / _key_name(key)
        _complete(folder, key, partial(build, folder, key, dataset, model, device, config.num_workers), world)
        dataset.features = _together(world, partial(FeatureCache, folder, key, table))
        logger.info(
            f"feature cache: {folder}, {len(dataset.names)} images of {dataset.title}; remove it after you replace an"
            " image by one of the same size and time"
        )


def _complete(folder: Path, key: dict, build_rows: Callable[[list[int]], None], world: World) -> None:
    """Build the rows that are not there; of two runs that need them one builds, and the other waits."""
    with ExitStack() as held:

        def unfinished() -> list[int] | None:
            if not world.is_main:
                return None
            held.enter_context(made_and_held(folder))
            return unfinished_rows(folder, key)

        missing = world.share(_together(world, unfinished))
        if missing:
            _together(world, lambda: build_rows(missing[world.rank :: world.size]))


def _together(world: World, work: Callable):
    """Do `work` on every rank -> its result. Bad input of one rank is raised on all: none is left waiting for it."""
    result = error = None
    try:
        result = work()
    except InputError as found:
        error = found
    errors = [found for found in world.collect(error) if found is not None]
    if errors:
        raise error or errors[0]
    return result


def cache_key(dataset: ImageDataset, model: nn.Module, fingerprint: str, precision: str) -> dict:
    """Everything that the features depend on: a change of any of it makes another cache."""
    vision, preprocess = model.config.vision, dataset.preprocess
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


def build(
    folder: Path,
    key: dict,
    dataset: ImageDataset,
    model: nn.Module,
    device: torch.device,
    num_workers: int,
    rows: list[int],
) -> None:
    """Compute and write these rows of a cache. Raises InputError for a value that its precision cannot hold."""
    files, was_training = _Files(folder, key), model.training
    loader = DataLoader(
        _Sources(dataset, rows), BATCH, num_workers=num_workers, collate_fn=list, worker_init_fn=send_queue_errors
    )
    model.eval()
    start = time.perf_counter()
    for number, batch in enumerate(tqdm(loader, desc=f"features of {dataset.title}", dynamic_ncols=True), start=1):
        images = torch.stack([image for _, image, _ in batch]).to(device)
        features = model.encode_frozen(images).float().cpu().numpy()
        for (index, _, size), row in zip(batch, features, strict=True):
            files.write(index, _store(row, key["precision"], dataset.names[index]), size)
        if number == 1:
            minutes = (time.perf_counter() - start) * len(loader) / 60
            logger.info(f"feature cache: about {minutes:.1f} minutes for {len(rows)} images")
        if number % BATCHES_PER_FLUSH == 0 or number == len(loader):
            files.flush()
    model.train(was_training)


class _Files:
    """The files of a cache, mapped for writing: every process writes its own rows of them."""

    def __init__(self, folder: Path, key: dict):
        self.key, self.features = key, open_features(folder, key, "r+")
        self.arrays = map_arrays(folder, key)
        self.written: list[int] = []

    def write(self, index: int, row: np.ndarray, size: tuple[int, int]) -> None:
        crc = zlib.crc32(row)
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
