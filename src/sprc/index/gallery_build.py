"""Builds an index of photographs, or brings it up to date: only what is new or changed is encoded."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from sprc.core.errors import ImageError, InputError, printable
from sprc.core.files import made_and_held
from sprc.data.images import NOT_APPLIED
from sprc.data.loader_workers import prepare_worker
from sprc.data.preprocess import Preprocess
from sprc.index.gallery_files import CHECKPOINT, PHOTOS, IndexFolder, Maker
from sprc.index.gallery_rows import RowFiles, good_rows, write_compacted
from sprc.index.photos import OpenedPhoto, Photo, PhotoFiles, list_photos

logger = logging.getLogger(__name__)

SECONDS_PER_SAVE = 2.0
SHOWN = 3  # broken photographs named in the log


@dataclass(frozen=True)
class TokenMaker:
    """What encodes photographs: its name and print, its preprocess, and images (B, 3, S, S) -> tokens (B, Q, E).

    `settings` and `checkpoint`, a path or None, are kept with the index: they are what builds the model again. `keep`
    puts files that the settings speak of into the index's folder.
    """

    maker: Maker
    preprocess: Preprocess
    encode: Callable[[Tensor], Tensor]
    settings: dict
    checkpoint: Path | None = None
    keep: Callable[[Path], None] = lambda folder: None
    batch_size: int = 32
    num_workers: int = 0


@dataclass
class Changes:
    """What a build did: photographs encoded, kept, no longer there, and broken ones with what is wrong.

    `tagged` counts the encoded ones that carry an EXIF orientation.
    """

    encoded: int = 0
    kept: int = 0
    dropped: int = 0
    tagged: int = 0
    broken: dict[str, ImageError] = field(default_factory=dict)

    def __str__(self) -> str:
        words = f"{self.kept + self.encoded} photographs: {self.encoded} encoded, {self.kept} kept"
        words += f", {self.dropped} no longer there or changed" if self.dropped else ""
        if self.broken:
            first = "; ".join(f"{printable(name)} ({error})" for name, error in list(self.broken.items())[:SHOWN])
            words += f"\n{len(self.broken)} more cannot be read and are left out, first {first}"
        if self.tagged:
            words += f"\n{self.tagged} of the encoded ones carry an EXIF orientation. {NOT_APPLIED}"
        return words


def update_index(photos: Path, path: Path, make: TokenMaker) -> Changes:
    """Make the index at `path` one of all photographs below the folder `photos` -> what was done.

    Whatever ends it early, what was encoded is kept, and the next call continues. Raises InputError if the index is of
    another model or folder, if another process builds it, if no photograph can be read, or if the disk is full.
    """
    listed = list_photos(photos)
    folder = IndexFolder(path)
    with made_and_held(path, wait=False):
        folder.refuse_other_data()
        number = _head(folder, photos, make)
        build = _Build(folder, number, photos, make)
        changes = build.run(listed)
        if build.rows > 2 * len(listed):
            _compact(folder, number, make)
    return changes


def _head(folder: IndexFolder, photos: Path, make: TokenMaker) -> int:
    """Check that the index is of this model and these photographs, or begin it -> the number of its data folder."""
    number = 0
    if folder.exists():
        maker, number, _ = folder.read_head()
        if not maker.same_as(make.maker):
            raise InputError(f"the index {folder.path} is of {maker}, not of {make.maker}: give another `output`")
        before = folder.link(PHOTOS)
        if before is not None and before.is_dir() and before != photos.resolve():
            raise InputError(
                f"the index {folder.path} is of the folder {before}, not of {photos}: give another `output`"
            )
    folder.write_head(make.maker, number, make.settings)
    folder.set_link(PHOTOS, photos)
    folder.set_link(CHECKPOINT, make.checkpoint)
    make.keep(folder.path)
    folder.remove_other_data(number)
    return number


def _compact(folder: IndexFolder, number: int, make: TokenMaker) -> None:
    """Write a new data folder that holds the gallery's rows alone, and then remove the old one."""
    logger.info(f"index {folder.path}: most of its rows are of photographs no longer there; it is written without them")
    write_compacted(folder, number, make.maker)
    folder.write_head(make.maker, number + 1, make.settings)
    folder.remove_other_data(number + 1)


def _listed(files: RowFiles, known: dict[str, int]) -> set[int]:
    """The good rows of the gallery as it was; of one that was never written, all good rows."""
    return set(known.values()) & set(files.listed.rows.tolist()) if files.listed is not None else set(known.values())


class _Build:
    """One build: the rows that are good already, and what is added to them. `rows` counts all that are on the disk."""

    def __init__(self, folder: IndexFolder, number: int, photos: Path, make: TokenMaker):
        self.folder, self.number, self.photos, self.make = folder, number, photos, make
        self.rows = 0

    def run(self, listed: dict[str, Photo]) -> Changes:
        with RowFiles(self.folder, self.number, self.make.maker) as files:
            known = good_rows(files)
            kept = {name: row for name, row in known.items() if files.rows[row].photo == listed.get(name)}
            wanted = [name for name in listed if name not in kept]
            self._require_space(len(wanted))
            changes = Changes(kept=len(kept), dropped=len(_listed(files, known) - set(kept.values())))
            for name, row in self._encoded(wanted, listed, files, changes):
                kept[name] = row
        self.rows = len(files.rows)
        self._finish([kept[name] for name in listed if name in kept], changes)
        return changes

    def _finish(self, gallery: list[int], changes: Changes) -> None:
        self.folder.write_skipped((name, str(error)) for name, error in changes.broken.items())
        if not gallery:
            name, error = next(iter(changes.broken.items()))
            first = f"{printable(name)} ({error})"
            raise InputError(f"none of the {len(changes.broken)} photographs in {self.photos} can be read: {first}")
        self.folder.write_gallery(self.number, np.array(gallery))

    def _require_space(self, images: int) -> None:
        needed, free = images * self.make.maker.row_bytes, shutil.disk_usage(self.folder.path).free
        if needed > 0.95 * free:
            raise InputError(
                f"the index needs {needed / 1e9:.3g} GB more, and {self.folder.path} has {free / 1e9:.3g} GB free: free"
                " some space, or give another `output`"
            )

    def _encoded(
        self, names: list[str], listed: dict[str, Photo], files: RowFiles, changes: Changes
    ) -> Iterator[tuple[str, int]]:
        """Encode photographs and add their rows -> (name, row) of each; all are on the disk at the end."""
        loader = DataLoader(
            PhotoFiles(self.photos, names, self.make.preprocess),
            self.make.batch_size,
            num_workers=self.make.num_workers,
            collate_fn=list,
            worker_init_fn=prepare_worker,
        )
        saved = time.monotonic()
        with tqdm(total=len(names), desc="photographs", unit="image", dynamic_ncols=True, disable=not names) as bar:
            for number, batch in enumerate(loader, start=1):
                good = [(name, found) for name, found in batch if isinstance(found, OpenedPhoto)]
                changes.broken |= {name: found for name, found in batch if isinstance(found, ImageError)}
                yield from self._add(good, listed, files)
                changes.encoded += len(good)
                changes.tagged += sum(found.tagged for _, found in good)
                bar.update(len(batch))
                if number == 1:
                    first = time.monotonic()  # what came before was mostly start-up
                elif number == 2:
                    minutes = (time.monotonic() - first) * (len(loader) - 1) / 60
                    logger.info(f"index: about {max(minutes, 0.1):.1f} minutes for {len(names)} photographs")
                if time.monotonic() - saved > SECONDS_PER_SAVE:
                    files.save()
                    saved = time.monotonic()

    def _add(
        self, good: list[tuple[str, OpenedPhoto]], listed: dict[str, Photo], files: RowFiles
    ) -> Iterator[tuple[str, int]]:
        if not good:
            return
        tokens = self.make.encode(torch.stack([found.image for _, found in good]))  # (B, Q, E)
        stored = tokens.to(torch.float16).cpu().numpy()
        for (name, found), row in zip(good, stored, strict=True):
            if not np.isfinite(row).all():
                raise InputError(
                    f"the model gives no numbers for the photograph {printable(name)}: use `precision` fp32"
                )
            yield name, files.add(name, listed[name], found.size, row)
