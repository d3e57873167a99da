"""CIRR and FashionIQ: captions, image lists and images; and the one collate function."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lavis.common.errors import InputError
from preprocess import build_preprocess as build_preprocess  # upstream's scripts look for these three here
from preprocess import squarepad_transform as squarepad_transform
from preprocess import targetpad_transform as targetpad_transform

REPOSITORY = Path(__file__).resolve().parents[1]
CIRR_ROOT = REPOSITORY / "cirr_dataset"
FASHIONIQ_ROOT = REPOSITORY / "fashionIQ_dataset"


class ImageDataset(Dataset):
    """What the datasets share. `image_paths` maps the name of every image, in the gallery's order, to its path relative
    to `root`; in mode `classic` an item is `(name, image)`, in mode `relative` what `triplet` gives.
    """

    triplets: list[dict]

    def __init__(self, title: str, mode: str, root: Path, image_paths: dict[str, str], preprocess: Callable):
        self.title, self.mode, self.root, self.preprocess = title, mode, root, preprocess
        self.image_paths, self.names = image_paths, list(image_paths)

    def __len__(self) -> int:
        return len(self.triplets if self.mode == "relative" else self.names)

    def __getitem__(self, index: int) -> tuple:
        if self.mode == "relative":
            return self.triplet(index)
        return self.names[index], self.load_image(self.names[index])

    def triplet(self, index: int) -> tuple:
        """The item of mode `relative`."""
        raise NotImplementedError

    def load_image(self, name: str) -> Tensor:
        """The preprocessed image (3, S, S). Raises InputError that names the file where it is missing or broken."""
        path = self.root / self.image_paths[name]
        try:
            with Image.open(path) as image:
                return self.preprocess(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"image {name!r} at {path} cannot be read ({error}): copy or download it anew") from error

    def check_images(self) -> None:
        """Raise InputError that names the first missing image files, before hours of training depend on them."""
        missing = missing_files(self.root, self.image_paths.values())
        if missing:
            raise InputError(
                f"{len(missing)} of {len(self.image_paths)} images of {self.title} are missing under {self.root},"
                f" first {', '.join(missing[:3])}: see cirr_dataset/README.md for where they come from"
            )


class CIRRDataset(ImageDataset):
    """CIRR (Liu et al., ICCV 2021): captions, image lists and images under `data_path`.

    Args:
        split: `train`, `val` or `test1`.
        mode: `classic`: `(name, image)` for every image of the split.
            `relative`: train `(reference_image, target_image, caption)`; val `(reference_name, target_name, caption,
            group_members)`; test1 `(pair_id, reference_name, caption, group_members)`.
        preprocess: PIL image -> tensor (3, S, S).
        data_path: the folder that holds `cirr/`, `train/`, `dev/`, `test1/`; default `cirr_dataset` of this repository.

    Raises:
        InputError: a file, a key, an entry or a name of a caption is missing or wrong, each by name.
    """

    SPLITS = ("train", "val", "test1")
    MODES = ("relative", "classic")

    def __init__(
        self, split: str, mode: str, preprocess: Callable[[Image.Image], Tensor], data_path: str | Path | None = None
    ):
        if split not in self.SPLITS or mode not in self.MODES:
            raise InputError(f"CIRRDataset: split {split!r}, mode {mode!r}; use {self.SPLITS} and {self.MODES}")
        root = Path(CIRR_ROOT if data_path is None else data_path).expanduser()
        super().__init__(f"CIRR {split}", mode, root, _read_image_split(root, split), preprocess)
        self.split = split
        self.triplets = _read_captions(root, split, self.image_paths)

    def triplet(self, index: int) -> tuple:
        entry = self.triplets[index]
        reference, caption = entry["reference"], entry["caption"]
        if self.split == "train":
            return self.load_image(reference), self.load_image(entry["target_hard"]), caption
        members = entry["img_set"]["members"]
        if self.split == "val":
            return reference, entry["target_hard"], caption, members
        return entry["pairid"], reference, caption, members


class FashionIQDataset(ImageDataset):
    """FashionIQ (Wu et al., CVPR 2021): captions, image lists and images under `data_path`, an image as .png or .jpg.

    Args:
        split: `train`, `val` or `test`.
        dress_types: some of `dress`, `shirt`, `toptee`.
        mode: `classic`: `(name, image)` for every image of the gallery.
            `relative`: train `(reference_image, target_image, [caption, caption])`; val `(reference_name, target_name,
            [caption, caption])`; test `(reference_name, reference_image, [caption, caption])`.
        preprocess: PIL image -> tensor (3, S, S).
        data_path: the folder that holds `captions/`, `image_splits/`, `images/`; default `fashionIQ_dataset` of this
            repository.
        gallery: `split`: the images of the split lists, as upstream; `captions`: those of them that a caption names.

    Raises:
        InputError: a file, a key or an entry is missing or wrong, each by name.
    """

    SPLITS = ("train", "val", "test")
    MODES = ("relative", "classic")
    TYPES = ("dress", "shirt", "toptee")

    def __init__(
        self,
        split: str,
        dress_types: list[str],
        mode: str,
        preprocess: Callable[[Image.Image], Tensor],
        data_path: str | Path | None = None,
        gallery: str = "split",
    ):
        known = split in self.SPLITS and mode in self.MODES and gallery in ("split", "captions")
        if not known or not dress_types or not set(dress_types) <= set(self.TYPES):
            raise InputError(
                f"FashionIQDataset: split {split!r}, types {dress_types}, mode {mode!r}, gallery {gallery!r}; use"
                f" {self.SPLITS}, {self.TYPES}, {self.MODES}, and split or captions"
            )
        root = Path(FASHIONIQ_ROOT if data_path is None else data_path).expanduser()
        if not root.is_dir():
            raise InputError(f"no folder {root}: give the folder that holds captions/ and images/ with --data-path")
        self.split = split
        self.triplets = [entry for kind in dress_types for entry in _read_fashioniq_captions(root, kind, split)]
        named = dict.fromkeys(name for entry in self.triplets for name in _fashioniq_names(entry, split))
        if mode == "relative":
            names = list(named)
        else:
            listed = dict.fromkeys(name for kind in dress_types for name in _read_fashioniq_list(root, kind, split))
            names = [name for name in listed if gallery == "split" or name in named]
        super().__init__(f"FashionIQ {split}", mode, root, _fashioniq_image_paths(root, names), preprocess)

    def triplet(self, index: int) -> tuple:
        entry = self.triplets[index]
        reference, captions = entry["candidate"], entry["captions"]
        if self.split == "train":
            return self.load_image(reference), self.load_image(entry["target"]), captions
        if self.split == "val":
            return reference, entry["target"], captions
        return reference, self.load_image(reference), captions


def missing_files(root: Path, relative_paths: Iterable[str]) -> list[str]:
    """The paths, relative to `root`, at which there is no file: one listing per folder, not one call per file."""
    by_folder = defaultdict(list)
    for path in relative_paths:
        by_folder[os.path.dirname(path)].append(path)
    missing = []
    for folder, paths in by_folder.items():
        present = _file_names(root / folder)
        missing += [path for path in paths if os.path.basename(path) not in present]
    return missing


def _file_names(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file()}


def read_json(path: Path, kind: type) -> dict | list:
    """The content of a JSON file. Raises InputError where it is missing, malformed or not a `kind`."""
    if not path.is_file():
        raise InputError(f"no file {path}: see cirr_dataset/README.md for the folders and where the files come from")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): download it anew") from error
    if not isinstance(content, kind):
        raise InputError(f"{path} should hold a JSON {kind.__name__}, not a {type(content).__name__}: download it anew")
    return content


def _read_image_split(root: Path, split: str) -> dict[str, str]:
    """name -> path relative to `root`, in file order, which is the order of the gallery."""
    if not root.is_dir():
        raise InputError(f"no folder {root}: give the folder that holds cirr/ and the images with --data-path")
    path = root / "cirr" / "image_splits" / f"split.rc2.{split}.json"
    paths = read_json(path, dict)
    for name, place in paths.items():
        if not isinstance(place, str) or os.path.isabs(place) or ".." in place.split("/"):
            raise InputError(f"{path}: the path of {name!r} is {place!r}; write it as './train/34/name.png'")
    if not paths:
        raise InputError(f"{path} lists no image: download it anew")
    return {name: os.path.normpath(place) for name, place in paths.items()}


def _read_captions(root: Path, split: str, known_names: dict[str, str]) -> list[dict]:
    path = root / "cirr" / "captions" / f"cap.rc2.{split}.json"
    entries = read_json(path, list)
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
        return f"is {entry!r}, not an object"
    absent = [key for key in keys if key not in entry]
    if absent:
        return f"(pairid {entry.get('pairid')}) lacks {', '.join(absent)}"
    members = entry["img_set"].get("members") if isinstance(entry["img_set"], dict) else None
    if not isinstance(entry["caption"], str) or not isinstance(members, list):
        return f"(pairid {entry['pairid']}) needs a text as caption and a list as img_set.members"
    names = [entry["reference"], *members] + ([entry["target_hard"]] if split != "test1" else [])
    unknown = [name for name in names if not isinstance(name, str) or name not in known_names]
    return (
        f"(pairid {entry['pairid']}) names {unknown[0]!r}, which split.rc2.{split}.json does not list"
        if unknown
        else None
    )


def _read_fashioniq_list(root: Path, kind: str, split: str) -> list[str]:
    path = root / "image_splits" / f"split.{kind}.{split}.json"
    names = read_json(path, list)
    wrong = [name for name in names if not isinstance(name, str) or "/" in name]
    if wrong or not names:
        raise InputError(f"{path} should list names of images, and has {wrong[0]!r}" if wrong else f"{path} is empty")
    return names


def _read_fashioniq_captions(root: Path, kind: str, split: str) -> list[dict]:
    path = root / "captions" / f"cap.{kind}.{split}.json"
    entries = read_json(path, list)
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
        return f"is {entry!r}, not an object"
    keys = ["candidate", "captions"] + (["target"] if split != "test" else [])
    absent = [key for key in keys if key not in entry]
    if absent:
        return f"lacks {', '.join(absent)}"
    captions = entry["captions"]
    if not isinstance(captions, list) or len(captions) != 2 or not all(isinstance(c, str) for c in captions):
        return f"(candidate {entry['candidate']!r}) needs two texts as captions, not {captions!r}"
    names = _fashioniq_names(entry, split)
    return None if all(isinstance(name, str) for name in names) else f"names images {names}, which are no texts"


def _fashioniq_names(entry: dict, split: str) -> list[str]:
    return [entry["candidate"]] + ([entry["target"]] if split != "test" else [])


def _fashioniq_image_paths(root: Path, names: list[str]) -> dict[str, str]:
    """name -> path relative to `root`: `.png` where there is one, else `.jpg`."""
    present = _file_names(root / "images")
    suffixes = {name: ".jpg" if f"{name}.jpg" in present and f"{name}.png" not in present else ".png" for name in names}
    return {name: os.path.join("images", name + suffix) for name, suffix in suffixes.items()}


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


def collate_fn(batch: list[tuple]) -> list:
    """Tuples of samples -> one list per field: tensors stacked (B, ...), captions, names and groups as plain lists."""
    return [
        default_collate(list(field)) if isinstance(field[0], Tensor) else list(field)
        for field in zip(*batch, strict=True)
    ]
