"""What each dataset brings to a run: training triplets, galleries to validate on, and how captions become sentences."""

from collections.abc import Callable

from data_utils import CIRRDataset, FashionIQDataset, ImageDataset, join_captions_randomly
from preprocess import Preprocess
from retrieval_task import Validation, cirr_validation, fashioniq_validation
from train_config import TrainConfig


def open_triplets(config: TrainConfig, preprocess: Preprocess) -> ImageDataset:
    """The training triplets, every image of them known to be there."""
    if config.preset.tag == "fiq":
        triplets = FashionIQDataset("train", FashionIQDataset.TYPES, "relative", preprocess, config.data_path)
    else:
        triplets = CIRRDataset("train", "relative", preprocess, config.data_path)
    triplets.check_images()
    return triplets


def open_galleries(config: TrainConfig, preprocess: Preprocess) -> dict[str, ImageDataset]:
    """The galleries to validate on, by name, every image of them known to be there."""
    if config.preset.tag == "fiq":
        galleries = {
            kind: FashionIQDataset("val", [kind], "classic", preprocess, config.data_path, config.gallery)
            for kind in FashionIQDataset.TYPES
        }
    else:
        galleries = {"val": CIRRDataset("val", "classic", preprocess, config.data_path)}
    for gallery in galleries.values():
        gallery.check_images()
    return galleries


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
