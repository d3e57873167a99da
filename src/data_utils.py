"""CIRR and FashionIQ: captions, image lists and images; and the one collate function."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lavis.datasets.region_boxes import FRAME_KEY, STORED, Region, read_box_file, regions_of
from sprc.core.errors import InputError, shown
from sprc.core.files import read_json, readable
from sprc.core.places import REPOSITORY
from sprc.data.image_files import fashioniq_image_paths
from sprc.data.images import is_tagged, naming, open_rgb, orientations, stored_size
from sprc.data.preprocess import build_preprocess as build_preprocess  # upstream's scripts look for these three here
from sprc.data.preprocess import squarepad_transform as squarepad_transform
from sprc.data.preprocess import targetpad_transform as targetpad_transform

CIRR_ROOT = REPOSITORY / "cirr_dataset"
FASHIONIQ_ROOT = REPOSITORY / "fashionIQ_dataset"
CURE = "see cirr_dataset/README.md for the folders and where the files come from"
PLAIN_NAMES = "write names without a path, / or \\"
MAX_REGIONS = 5


@dataclass(frozen=True)
class Triplet:
    """A training triplet: images (3, S, S), caption or captions, names; regions where there is a box file.

    Boxes are (n, 4), xyxy in [0, 1] of the input frame; `dropped` counts those of both images that were too small.
    """

    image: Tensor
    target: Tensor
    caption: str | list[str]
    reference_name: str
    target_name: str
    reference_boxes: Tensor | None = None
    target_boxes: Tensor | None = None
    dropped: int = 0


class ImageDataset(Dataset):
    """What the datasets share.

    `image_paths` maps the name of every image, in the gallery's order, to its path relative to `root`. In mode
    `classic` an item is `(name, image)`, in mode `relative` what `relative_item` gives. `regions` are those of a box
    file, by name, or None.
    """

    triplets: list[dict]
    target_key: str  # of an entry of `triplets`
    reference_key: str
    caption_key: str

    def __init__(
        self, title: str, mode: str, root: Path, image_paths: dict[str, str], preprocess: Callable, max_regions: int
    ):
        self.title, self.mode, self.root, self.preprocess = title, mode, root, preprocess
        self.image_paths, self.names = image_paths, list(image_paths)
        self.regions: dict[str, list[Region]] | None = None
        self.features = None  # a `sprc.data.feature_cache.FeatureCache` in the order of `names`, or None
        self.index_of = {name: index for index, name in enumerate(self.names)}
        self.max_regions = max_regions
        self._moved: dict[str, tuple[Tensor, int]] = {}

    def __len__(self) -> int:
        return len(self.triplets if self.mode == "relative" else self.names)

    def __getitem__(self, index: int) -> tuple:
        if self.mode == "relative":
            return self.relative_item(index)
        return self.names[index], self.load_image(self.names[index])

    def relative_item(self, index: int) -> tuple:
        """The item of mode `relative`."""
        raise NotImplementedError

    def use_boxes(self, box_file: str | Path) -> None:
        """Take regions from a box file.

        Raises InputError if it is wrong, if `preprocess` cannot move boxes, or if the file does not say its frame and
        images with boxes carry an EXIF orientation.
        """
        if not hasattr(self.preprocess, "move_boxes"):
            raise InputError(
                "a box file needs a preprocess that moves boxes: targetpad_transform or squarepad_transform"
            )
        if self.max_regions < 1:
            raise InputError(f"--max-regions must be at least 1, not {self.max_regions}")
        names = (entry[key] for entry in self.triplets for key in (self.reference_key, self.target_key))
        file = read_box_file(box_file)
        self.regions, self._moved = regions_of(file, names, self.title), {}
        if file.frame is None:
            self._refuse_tagged(file.path)

    def _refuse_tagged(self, box_file: Path) -> None:
        """Boxes of a tool that applies an EXIF orientation would lie elsewhere: the file must say its frame then."""
        names = [name for name, regions in self.regions.items() if regions]
        tagged = [
            name for name, found in zip(names, orientations(map(self.path_of, names)), strict=True) if is_tagged(found)
        ]
        if tagged:
            raise InputError(
                f"{box_file} does not say in which frame its boxes are, and {len(tagged)} images of {self.title} that"
                f" have boxes carry an EXIF orientation, first {', '.join(tagged[:3])}: make it again with"
                f' roi_align_integration/tools/generate_cirr_boxes.py, or add the entry "{FRAME_KEY}": "{STORED}"'
                " to it if its boxes are of the pixels as they are stored"
            )

    def triplet(self, index: int) -> Triplet:
        """Everything about a training triplet, with regions where there is a box file."""
        entry = self.triplets[index]
        names = entry[self.reference_key], entry[self.target_key]
        if self.regions is None:
            return Triplet(*map(self.load_image, names), entry[self.caption_key], *names)
        (reference, reference_boxes, few), (target, target_boxes, more) = map(self.load_regions, names)
        return Triplet(reference, target, entry[self.caption_key], *names, reference_boxes, target_boxes, few + more)

    def train_item(self, index: int) -> tuple:
        """`(reference_image, target_image, caption)`, and with a box file `ref_boxes` and `tgt_boxes` behind it."""
        found = self.triplet(index)
        boxes = () if self.regions is None else (found.reference_boxes, found.target_boxes)
        return found.image, found.target, found.caption, *boxes

    def load_regions(self, name: str) -> tuple[Tensor, Tensor, int]:
        """Image (3, S, S), its `max_regions` largest boxes (n, 4) in the input frame, and how many were dropped."""
        if self.features is not None:
            return self.load_image(name), *self._moved_regions(name, self.get_image_size(name))
        with naming(name, self.path_of(name)):
            image = open_rgb(self.path_of(name))
            return self.preprocess(image), *self._moved_regions(name, image.size)

    def _moved_regions(self, name: str, size: tuple[int, int]) -> tuple[Tensor, int]:
        """An image's boxes in the input frame and how many were dropped: moved when they are first asked for."""
        if name not in self._moved:
            found = self.preprocess.move_boxes([region.box for region in self.regions.get(name, ())], *size)
            self._moved[name] = found.boxes[: self.max_regions], found.dropped
        boxes, dropped = self._moved[name]
        return boxes.clone(), dropped

    def get_image_size(self, name: str) -> tuple[int, int]:
        """(width, height) of the raw image as it is stored, in pixels.

        Raises InputError as `load_image`, and for an unknown name.
        """
        if name not in self.image_paths:
            raise InputError(f"{self.title} has no image {name!r}")
        if self.features is not None:
            width, height = self.features.sizes[self.index_of[name]]
            return int(width), int(height)
        with naming(name, self.path_of(name)):
            return stored_size(self.path_of(name))

    def load_image(self, name: str) -> Tensor:
        """The preprocessed image (3, S, S), or its cached features (T, D), or with these on a GPU its index, 0-d.

        Raises InputError that names the file where it is missing or broken.
        """
        if self.features is not None:
            return self.features[self.index_of[name]]
        with naming(name, self.path_of(name)):
            return self.preprocess(open_rgb(self.path_of(name)))

    def on_device(self, images: Tensor, device: torch.device) -> Tensor:
        """A batch of what `load_image` gives -> images (B, 3, S, S) or features (B, T, D) on the device."""
        if images.dim() == 1:
            return self.features.take(images)
        return images.to(device, non_blocking=True)

    def path_of(self, name: str) -> Path:
        """The file of an image."""
        return self.root / self.image_paths[name]


class CIRRDataset(ImageDataset):
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
    MODES = ("relative", "classic")

    reference_key, target_key, caption_key = "reference", "target_hard", "caption"

    def __init__(
        self,
        split: str,
        mode: str,
        preprocess: Callable[[Image.Image], Tensor],
        box_file: str | Path | None = None,
        data_path: str | Path | None = None,
        max_regions: int = MAX_REGIONS,
    ):
        if split not in self.SPLITS or mode not in self.MODES:
            raise InputError(f"CIRRDataset: split {split!r}, mode {mode!r}; use {self.SPLITS} and {self.MODES}")
        root = dataset_root(CIRR_ROOT, data_path)
        super().__init__(f"CIRR {split}", mode, root, read_image_split(root, split), preprocess, max_regions)
        self.split = split
        self.triplets = _read_captions(root, split, self.image_paths)
        if box_file is not None and (split, mode) == ("train", "relative"):
            self.use_boxes(box_file)

    def relative_item(self, index: int) -> tuple:
        if self.split == "train":
            return self.train_item(index)
        entry = self.triplets[index]
        reference, caption, members = entry["reference"], entry["caption"], entry["img_set"]["members"]
        if self.split == "val":
            return reference, entry["target_hard"], caption, members
        return entry["pairid"], reference, caption, members


class FashionIQDataset(ImageDataset):
    """FashionIQ (Wu et al., CVPR 2021): captions, image lists and images under `data_path`.

    An image is a .png, .jpg or .jpeg, in lower or upper case; the first of these that is there.

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
    MODES = ("relative", "classic")
    TYPES = ("dress", "shirt", "toptee")
    reference_key, target_key, caption_key = "candidate", "target", "captions"

    def __init__(
        self,
        split: str,
        dress_types: list[str],
        mode: str,
        preprocess: Callable[[Image.Image], Tensor],
        box_file: str | Path | None = None,
        data_path: str | Path | None = None,
        max_regions: int = MAX_REGIONS,
        gallery: str = "split",
    ):
        known = split in self.SPLITS and mode in self.MODES and gallery in ("split", "captions")
        if not known or not dress_types or not set(dress_types) <= set(self.TYPES):
            raise InputError(
                f"FashionIQDataset: split {split!r}, types {dress_types}, mode {mode!r}, gallery {gallery!r}; use"
                f" {self.SPLITS}, {self.TYPES}, {self.MODES}, and split or captions"
            )
        root = dataset_root(FASHIONIQ_ROOT, data_path)
        if not os.path.isdir(root):
            raise InputError(f"no folder {root}: give the folder that holds captions/ and images/ with --data-path")
        self.split = split
        entries = {kind: _read_fashioniq_captions(root, kind, split) for kind in dress_types}
        self.triplets = [entry for of_kind in entries.values() for entry in of_kind]
        named = dict.fromkeys(name for entry in self.triplets for name in _fashioniq_names(entry, split))
        if mode == "relative":
            names = list(named)
        else:
            listed = dict.fromkeys(
                name for kind in entries for name in _read_fashioniq_list(root, kind, split, entries[kind])
            )
            names = [name for name in listed if gallery == "split" or name in named]
        super().__init__(f"FashionIQ {split}", mode, root, fashioniq_image_paths(root, names), preprocess, max_regions)
        if box_file is not None and (split, mode) == ("train", "relative"):
            self.use_boxes(box_file)

    def relative_item(self, index: int) -> tuple:
        if self.split == "train":
            return self.train_item(index)
        entry = self.triplets[index]
        reference, captions = entry["candidate"], entry["captions"]
        if self.split == "val":
            return reference, entry["target"], captions
        return reference, self.load_image(reference), captions


def dataset_root(default: Path, data_path: str | Path | None) -> Path:
    """The folder of a dataset: `data_path`, or the repository's own."""
    return Path(default if data_path is None else data_path).expanduser()


def cirr_files(root: Path, split: str) -> tuple[Path, Path]:
    """The captions file and the image list of a split of CIRR."""
    folder = root / "cirr"
    return folder / "captions" / f"cap.rc2.{split}.json", folder / "image_splits" / f"split.rc2.{split}.json"


def fashioniq_files(root: Path, kind: str, split: str) -> tuple[Path, Path]:
    """The captions file and the image list of a garment type and split of FashionIQ."""
    return root / "captions" / f"cap.{kind}.{split}.json", root / "image_splits" / f"split.{kind}.{split}.json"


def read_image_split(root: Path, split: str) -> dict[str, str]:
    """name -> path relative to `root`, in file order, which is the order of the gallery."""
    with readable(root, CURE):
        if not root.is_dir():
            raise InputError(f"no folder {root}: give the folder that holds cirr/ and the images with --data-path")
    _, path = cirr_files(root, split)
    paths = read_json(path, dict, CURE)
    for name, place in paths.items():
        problem = _place_problem(name, place)
        if problem:
            raise InputError(f"{path}: the path of {name!r} is {shown(place)}; {problem}")
    if not paths:
        raise InputError(f"{path} lists no image: download it anew")
    return {name: os.path.normpath(place) for name, place in paths.items()}


def _place_problem(name: str, place) -> str | None:
    """What is wrong with the path of an image in a split, or None."""
    if isinstance(place, str) and "\\" in place:
        return "write it with / instead of \\"
    if not name:
        return "give the image a name"
    inside = isinstance(place, str) and not os.path.isabs(place) and ".." not in place.split("/")
    if not inside or "\0" in place or os.path.normpath(place) == ".":
        return "write it as './train/34/name.png'"
    return None


def _read_captions(root: Path, split: str, known_names: dict[str, str]) -> list[dict]:
    path, _ = cirr_files(root, split)
    entries = read_json(path, list, CURE)
    if not entries:
        raise InputError(f"{path} holds no caption: download it anew")
    for index, entry in enumerate(entries):
        problem = _entry_problem(entry, split, known_names)
        if problem:
            raise InputError(f"{path}: entry {index} {problem}; correct it, or download the file anew")
    return entries


def _entry_problem(entry, split: str, known_names: dict[str, str]) -> str | None:
    """What is wrong with one entry of the captions file, or None."""
    keys = ["pairid", "reference", "caption", "img_set"] + (["target_hard"] if split != "test1" else [])
    if not isinstance(entry, dict):
        return f"is {shown(entry)}, not an object"
    absent = [key for key in keys if key not in entry]
    pair = f"(pairid {shown(entry.get('pairid'))})"
    if absent:
        return f"{pair} lacks {', '.join(absent)}"
    members = entry["img_set"].get("members") if isinstance(entry["img_set"], dict) else None
    if not isinstance(entry["caption"], str) or not isinstance(members, list):
        return f"{pair} needs a text as caption and a list as img_set.members"
    names = [entry["reference"]] + ([entry["target_hard"]] if split != "test1" else [])
    names += members if split != "train" else []  # a training reads none of them
    unknown = [name for name in names if not isinstance(name, str) or name not in known_names]
    if unknown:
        return f"{pair} names {shown(unknown[0])}, which split.rc2.{split}.json does not list"
    if split == "val" and entry["target_hard"] not in set(members) - {entry["reference"]}:
        return f"{pair} has a target that is none of the other members of its group"
    return None


def _read_fashioniq_list(root: Path, kind: str, split: str, entries: list[dict]) -> list[str]:
    """The gallery of a type, in which every image of its captions' `entries` must be."""
    captions, path = fashioniq_files(root, kind, split)
    names = read_json(path, list, CURE)
    wrong = [name for name in names if not _is_fashioniq_name(name)]
    if wrong or not names:
        problem = f"lists {shown(wrong[0])}; {PLAIN_NAMES}" if wrong else f"is empty; {CURE}"
        raise InputError(f"{path} {problem}")
    known = set(names)
    for index, entry in enumerate(entries):
        for name in _fashioniq_names(entry, split):
            if name not in known:
                raise InputError(f"{captions}: entry {index} names image {name!r}, which {path} does not list: {CURE}")
    return names


def _read_fashioniq_captions(root: Path, kind: str, split: str) -> list[dict]:
    path, _ = fashioniq_files(root, kind, split)
    entries = read_json(path, list, CURE)
    if not entries:
        raise InputError(f"{path} holds no caption: download it anew")
    for index, entry in enumerate(entries):
        problem = _fashioniq_problem(entry, split)
        if problem:
            raise InputError(f"{path}: entry {index} {problem}; correct it, or download the file anew")
    return entries


def _fashioniq_problem(entry, split: str) -> str | None:
    """What is wrong with one entry of a FashionIQ captions file, or None."""
    if not isinstance(entry, dict):
        return f"is {shown(entry)}, not an object"
    keys = ["candidate", "captions"] + (["target"] if split != "test" else [])
    absent = [key for key in keys if key not in entry]
    if absent:
        return f"lacks {', '.join(absent)}"
    captions = entry["captions"]
    if not isinstance(captions, list) or len(captions) != 2 or not all(isinstance(c, str) for c in captions):
        return f"(candidate {shown(entry['candidate'])}) needs two texts as captions, not {shown(captions)}"
    names = _fashioniq_names(entry, split)
    if not all(map(_is_fashioniq_name, names)):
        return f"names images {shown(names)}: {PLAIN_NAMES}"
    return None


def _is_fashioniq_name(name) -> bool:
    return isinstance(name, str) and name != "" and not {"/", "\\", "\0"} & set(name)


def _fashioniq_names(entry: dict, split: str) -> list[str]:
    return [entry["candidate"]] + ([entry["target"]] if split != "test" else [])


def join_captions(captions: list[str]) -> str:
    """The two captions of a FashionIQ entry as one sentence, for validation: "first and second"."""
    first, second = (caption.strip(".?, ") for caption in captions)
    return f"{first} and {second}"


def join_captions_randomly(batch: list[list[str]]) -> list[str]:
    """One of four sentences for every pair of captions, in training: both in either order, the first, the second.

    Draws from torch's global CPU generator, which the engine seeds by epoch.
    """
    choices = torch.randint(4, (len(batch),)).tolist()
    stripped = [[caption.strip(".?, ") for caption in captions] for captions in batch]
    return [
        (f"{first} and {second}", f"{second} and {first}", first, second)[choice]
        for choice, (first, second) in zip(choices, stripped, strict=True)
    ]


class TrainingTriplets(Dataset):
    """A dataset's training triplets as dictionaries of the fields of `Triplet`, for the engine."""

    def __init__(self, dataset: ImageDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset.triplets)

    def __getitem__(self, index: int) -> dict:
        found = self.dataset.triplet(index)
        sample = {field.name: getattr(found, field.name) for field in fields(found)}
        # As arrays: a worker process hands over every tensor, however small, by a file of its own.
        boxes = {name: sample[name] for name in ("reference_boxes", "target_boxes")}
        return sample | {name: None if part is None else part.numpy() for name, part in boxes.items()}


def collate_fn(batch: list[tuple] | list[dict]) -> list | dict:
    """Samples -> one list per field, in a list for tuples and in a dictionary for dictionaries.

    Images (3, S, S), features (T, D) and indices are stacked; captions, names, groups, and boxes (n, 4) of any n, stay
    plain lists.
    """
    if isinstance(batch[0], dict):
        return {name: _collate_field([sample[name] for sample in batch]) for name in batch[0]}
    return [_collate_field(list(field)) for field in zip(*batch, strict=True)]


def _collate_field(field: list) -> Tensor | list:
    is_boxes = isinstance(field[0], Tensor) and field[0].dim() == 2 and field[0].shape[1] == 4
    return default_collate(field) if isinstance(field[0], Tensor) and not is_boxes else field
