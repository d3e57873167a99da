"""Images and captions: the preprocess pipelines, the CIRR dataset, and the one collate function."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms.v2 import functional as tvf

from lavis.common.errors import InputError
from lavis.processors.blip_processors import CLIP_MEAN, CLIP_STD

REPOSITORY = Path(__file__).resolve().parents[1]
CIRR_ROOT = REPOSITORY / "cirr_dataset"
IMAGES_OF_CIRR = 21_551


@dataclass(frozen=True)
class Geometry:
    """How an image reaches the input frame: pad by (horizontal, vertical) on both sides, resize, crop the centre.

    `resized` is (width, height) after the resize; `dim` the side of the square input frame, in pixels.
    """

    padding: tuple[int, int]
    resized: tuple[int, int]
    dim: int


def input_geometry(width: int, height: int, target_ratio: float, dim: int) -> Geometry:
    """The geometry of an image of `width` x `height` pixels.

    Sides whose ratio is below `target_ratio` are left alone; others are padded, the short side up to the long side
    divided by the ratio (1 makes a square). The shorter side is then resized to `dim`.
    """
    horizontal = vertical = 0
    if target_ratio <= 1 or max(width, height) / min(width, height) >= target_ratio:
        scaled = max(width, height) / max(target_ratio, 1)
        horizontal, vertical = (int(max(scaled - side, 0) / 2) for side in (width, height))
    padded = width + 2 * horizontal, height + 2 * vertical
    short = min(padded)
    resized = tuple(dim if side == short else int(dim * side / short) for side in padded)
    return Geometry((horizontal, vertical), resized, dim)


@dataclass(frozen=True)
class Preprocess:
    """RGB, pad to `target_ratio`, resize bicubic to `dim`, crop the centre, CLIP's mean and std. Picklable.

    RGB conversion comes first, so that the padding is black in a palette image too.
    """

    target_ratio: float
    dim: int

    def __call__(self, image: Image.Image) -> Tensor:
        """A PIL image of any mode and shape -> (3, dim, dim) float32."""
        rgb = image.convert("RGB")
        geometry = input_geometry(*rgb.size, self.target_ratio, self.dim)
        padded = tvf.pad(rgb, list(geometry.padding))
        resized = padded.resize(geometry.resized, Image.Resampling.BICUBIC)
        pixels = tvf.pil_to_tensor(tvf.center_crop(resized, [self.dim, self.dim]))  # (3, dim, dim) uint8
        return tvf.normalize(pixels.float().div_(255), list(CLIP_MEAN), list(CLIP_STD), inplace=True)


def targetpad_transform(target_ratio: float = 1.25, dim: int = 224) -> Preprocess:
    """SPRC's default: pad images longer than `target_ratio` to that ratio. Raises InputError for a ratio below 1."""
    if not target_ratio >= 1:
        raise InputError(f"--target-ratio is long side / short side, at least 1, not {target_ratio}")
    return Preprocess(float(target_ratio), dim)


def squarepad_transform(dim: int = 224) -> Preprocess:
    """Pad every image to a square."""
    return Preprocess(1.0, dim)


def build_preprocess(transform: str, target_ratio: float = 1.25, dim: int = 224) -> Preprocess:
    """`targetpad` or `squarepad` by name. Raises InputError for another."""
    if transform == "targetpad":
        return targetpad_transform(target_ratio, dim)
    if transform == "squarepad":
        return squarepad_transform(dim)
    raise InputError(f"unknown transform {transform!r}: use targetpad or squarepad")


class CIRRDataset(Dataset):
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
        self.split, self.mode, self.preprocess = split, mode, preprocess
        self.root = Path(CIRR_ROOT if data_path is None else data_path).expanduser()
        self.image_paths = _read_image_split(self.root, split)
        self.names = list(self.image_paths)
        self.triplets = _read_captions(self.root, split, self.image_paths)

    def __len__(self) -> int:
        return len(self.triplets if self.mode == "relative" else self.names)

    def __getitem__(self, index: int) -> tuple:
        if self.mode == "classic":
            return self.names[index], self.load_image(self.names[index])
        entry = self.triplets[index]
        reference, caption = entry["reference"], entry["caption"]
        if self.split == "train":
            return self.load_image(reference), self.load_image(entry["target_hard"]), caption
        members = entry["img_set"]["members"]
        if self.split == "val":
            return reference, entry["target_hard"], caption, members
        return entry["pairid"], reference, caption, members

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
                f"{len(missing)} of {len(self.names)} images of CIRR {self.split} are missing under {self.root},"
                f" first {', '.join(missing[:3])}: see cirr_dataset/README.md for where they come from"
            )


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


def collate_fn(batch: list[tuple]) -> list:
    """Tuples of samples -> one list per field: tensors stacked (B, ...), captions, names and groups as plain lists."""
    return [
        default_collate(list(field)) if isinstance(field[0], Tensor) else list(field)
        for field in zip(*batch, strict=True)
    ]
