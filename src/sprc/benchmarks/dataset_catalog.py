"""What each dataset brings to a run: training triplets, galleries to validate on, and how captions become sentences."""

from collections.abc import Callable
from pathlib import Path

from data_utils import (
    CIRR_ROOT,
    FASHIONIQ_ROOT,
    CIRRDataset,
    FashionIQDataset,
    ImageDataset,
    cirr_files,
    dataset_root,
    fashioniq_files,
    join_captions_randomly,
)
from sprc.benchmarks.retrieval_task import Validation, cirr_validation, fashioniq_validation
from sprc.data.preprocess import Preprocess
from sprc.training.config import TrainConfig


def annotation_files(config: TrainConfig) -> dict[str, Path]:
    """The annotation files that a training reads, by their place in the dataset's folder."""
    if config.preset.tag == "fiq":
        root = dataset_root(FASHIONIQ_ROOT, config.data_path)
        train = [fashioniq_files(root, kind, "train")[0] for kind in FashionIQDataset.TYPES]
        files = [*train, *(path for kind in FashionIQDataset.TYPES for path in fashioniq_files(root, kind, "val"))]
    else:
        root = dataset_root(CIRR_ROOT, config.data_path)
        files = [path for split in ("train", "val") for path in cirr_files(root, split)]
    return {path.relative_to(root).as_posix(): path for path in files}


def open_triplets(config: TrainConfig, preprocess: Preprocess) -> ImageDataset:
    """The training triplets, with regions where there is a box file; `image_check` looks whether images are there."""
    options = {"box_file": config.box_file, "data_path": config.data_path, "max_regions": config.max_regions}
    if config.preset.tag == "fiq":
        return FashionIQDataset("train", FashionIQDataset.TYPES, "relative", preprocess, **options)
    return CIRRDataset("train", "relative", preprocess, **options)


def open_galleries(config: TrainConfig, preprocess: Preprocess) -> dict[str, ImageDataset]:
    """The galleries to validate on, by name."""
    if config.preset.tag == "fiq":
        return {
            kind: FashionIQDataset(
                "val", [kind], "classic", preprocess, data_path=config.data_path, gallery=config.gallery
            )
            for kind in FashionIQDataset.TYPES
        }
    return {"val": CIRRDataset("val", "classic", preprocess, data_path=config.data_path)}


def make_validation(
    config: TrainConfig, galleries: dict[str, ImageDataset], process_caption: Callable[[str], str]
) -> Validation:
    """The queries and metrics over `galleries`."""
    if config.preset.tag == "fiq":
        return fashioniq_validation(galleries, process_caption)
    return cirr_validation(galleries["val"], process_caption)


def training_sentences(config: TrainConfig) -> Callable[[list], list[str]]:
    """From the captions of a batch of triplets to one sentence each."""
    return join_captions_randomly if config.preset.tag == "fiq" else list
