"""CIRR and FashionIQ under upstream's names: datasets whose items are upstream's tuples, and the transforms.

The benchmarks themselves are in `sprc.benchmarks`; these classes are thin adapters.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from sprc.benchmarks import cirr, fashioniq
from sprc.benchmarks.cirr import CIRR
from sprc.benchmarks.fashioniq import TYPES, FashionIQ
from sprc.core.errors import InputError
from sprc.data.batches import collate_fn
from sprc.data.image_set import ImageSet, Loaded
from sprc.data.options import MAX_REGIONS, BoxOptions
from sprc.data.preprocess import build_preprocess, squarepad_transform, targetpad_transform
from sprc.data.triplets import Query, TrainingTriplets, open_regions

__all__ = [
    "CIRRDataset",
    "FashionIQDataset",
    "build_preprocess",
    "collate_fn",
    "squarepad_transform",
    "targetpad_transform",
]

MODES = ("relative", "classic")


class TrainItem(NamedTuple):
    """A training triplet."""

    reference_image: Loaded
    target_image: Loaded
    caption: str | list[str]


class TrainItemWithBoxes(NamedTuple):
    """A training triplet with boxes (n, 4), xyxy in [0, 1] of the input frame, largest first; n may be 0."""

    reference_image: Loaded
    target_image: Loaded
    caption: str | list[str]
    ref_boxes: Tensor
    tgt_boxes: Tensor


class UpstreamDataset(ImageSet):
    """What the two datasets share: the modes. In mode `classic` an item is `(name, image)`.

    `triplets` are the entries of the captions files, as upstream; `training` is the same as named fields.
    """

    def __init__(
        self,
        split: str,
        mode: str,
        images: ImageSet,
        entries: list[dict],
        queries: list[Query],
        boxes: BoxOptions | None,
    ):
        super().__init__(images.title, images.root, images.image_paths, images.preprocess)
        self.split, self.mode, self.triplets, self.queries = split, mode, entries, queries
        trains = (split, mode) == ("train", "relative")
        self.training = TrainingTriplets(self, queries, open_regions(boxes if trains else None, self, queries))

    def __len__(self) -> int:
        return len(self.queries if self.mode == "relative" else self.names)

    def __getitem__(self, index: int) -> tuple:
        if self.mode == "classic":
            return super().__getitem__(index)
        return self.train_item(index) if self.split == "train" else self.query_item(self.queries[index])

    def train_item(self, index: int) -> tuple:
        """`(reference_image, target_image, caption)`, and with a box file `ref_boxes` and `tgt_boxes` after it."""
        found = self.training.triplet(index)
        images = found.image, found.target, found.caption
        if found.reference_boxes is None or found.target_boxes is None:
            return TrainItem(*images)
        return TrainItemWithBoxes(*images, found.reference_boxes, found.target_boxes)

    def query_item(self, query: Query) -> tuple[Any, ...]:
        """The item of mode `relative` for a split that is not trained on."""
        raise NotImplementedError


def box_options(box_file: str | Path | None, max_regions: int) -> BoxOptions | None:
    return None if box_file is None else BoxOptions(Path(box_file), max_regions)


class CIRRDataset(UpstreamDataset):
    """CIRR (Liu et al., ICCV 2021): captions, image lists and images under `data_path`.

    Args:
        split: `train`, `val` or `test1`.
        mode: `classic`: `(name, image)` for every image of the split.
            `relative`: train `(reference_image, target_image, caption)`, and with a box file `(reference_image,
            target_image, caption, ref_boxes, tgt_boxes)`; val `(reference_name, target_name, caption, group_members)`;
            test1 `(pair_id, reference_name, caption, group_members)`.
        preprocess: PIL image -> tensor (3, S, S); with a box file one of `targetpad_transform`, `squarepad_transform`.
        box_file: boxes of the images, for mode `relative` of `train`; other items have no boxes. `ref_boxes` and
            `tgt_boxes` are float32 tensors (n, 4), xyxy in [0, 1] of the input frame, largest first, n may be 0.
        data_path: the folder that holds `cirr/`, `train/`, `dev/`, `test1/`; default `cirr_dataset` of this repository.
        max_regions: the most boxes of an image.

    Raises:
        InputError: a file, a key, an entry or a name of a caption is missing or wrong, each by name.
    """

    SPLITS = ("train", "val", "test1")
    MODES = MODES

    def __init__(
        self,
        split: str,
        mode: str,
        preprocess: Callable[[Image.Image], Tensor],
        box_file: str | Path | None = None,
        data_path: str | Path | None = None,
        max_regions: int = MAX_REGIONS,
    ):
        if split not in self.SPLITS or mode not in MODES:
            raise InputError(f"CIRRDataset: split {split!r}, mode {mode!r}; use {self.SPLITS} and {MODES}")
        benchmark = CIRR(data_path)
        images = ImageSet(f"CIRR {split}", benchmark.root, benchmark.image_paths(split), preprocess)
        entries = benchmark.entries(split, images.image_paths)
        queries = [cirr.query_of(entry, split) for entry in entries]
        super().__init__(split, mode, images, entries, queries, box_options(box_file, max_regions))

    def query_item(self, query: Query) -> tuple:
        members = list(query.group)
        if self.split == "val":
            return query.reference, query.target, query.caption, members
        return query.pair_id, query.reference, query.caption, members


class FashionIQDataset(UpstreamDataset):
    """FashionIQ (Wu et al., CVPR 2021): captions, image lists and images under `data_path`.

    Args:
        split: `train`, `val` or `test`.
        dress_types: some of `dress`, `shirt`, `toptee`.
        mode: `classic`: `(name, image)` for every image of the gallery.
            `relative`: train `(reference_image, target_image, [caption, caption])`, and with a box file `(...,
            ref_boxes, tgt_boxes)`; val `(reference_name, target_name, [caption, caption])`; test `(reference_name,
            reference_image, [caption, caption])`.
        preprocess, box_file, max_regions: as `CIRRDataset`.
        data_path: the folder that holds `captions/`, `image_splits/`, `images/`; default `fashionIQ_dataset` of this
            repository.
        gallery: `split`: the images of the split lists, as upstream; `captions`: those of them that a caption names.

    Raises:
        InputError: a file, a key or an entry is missing or wrong, each by name.
    """

    SPLITS = ("train", "val", "test")
    MODES = MODES
    TYPES = TYPES

    def __init__(
        self,
        split: str,
        dress_types: Sequence[str],
        mode: str,
        preprocess: Callable[[Image.Image], Tensor],
        box_file: str | Path | None = None,
        data_path: str | Path | None = None,
        max_regions: int = MAX_REGIONS,
        gallery: str = "split",
    ):
        known = split in self.SPLITS and mode in MODES and gallery in FashionIQ.protocols
        if not known or not dress_types or not set(dress_types) <= set(TYPES):
            raise InputError(
                f"FashionIQDataset: split {split!r}, types {dress_types}, mode {mode!r}, gallery {gallery!r}; use"
                f" {self.SPLITS}, {TYPES}, {MODES}, and split or captions"
            )
        benchmark = FashionIQ(data_path, gallery)
        entries = benchmark.entries(split, dress_types)
        by_type = fashioniq.queries_of(entries, split)
        paths = benchmark.named_paths(by_type) if mode == "relative" else benchmark.image_paths(split, by_type)
        images, flat = ImageSet(f"FashionIQ {split}", benchmark.root, paths, preprocess), [*chain(*entries.values())]
        queries = [*chain(*by_type.values())]
        super().__init__(split, mode, images, flat, queries, box_options(box_file, max_regions))

    def query_item(self, query: Query) -> tuple:
        if self.split == "val":
            return query.reference, query.target, query.caption
        return query.reference, self.load_image(query.reference), query.caption
