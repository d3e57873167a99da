"""What a comparison of region losses trains on: generated scenes, another set for every seed, or CIRR itself."""

import argparse
from functools import cached_property
from pathlib import Path

import efficientnet_lite
from product_dataset import ProductSettings, make_product_dataset, write_model
from product_photos import Photos, read_photos
from region_pretraining import Pretraining, pretrained_weights

from sprc.core.errors import InputError
from sprc.demo.dataset import DemoSettings, make_demo_dataset
from sprc.training.config import TrainConfig

MODEL = Path(__file__).with_name("benchmark_model.yaml")
# SPRC knows so few triplets by heart before the end: more steps bring nothing.
DEMO = {
    "images": 4000, "triplets": 3000, "val_images": 240, "val_triplets": 4000, "test_images": 6, "test_triplets": 2,
}  # fmt: skip
SCENES = ("cluttered", "plain")  # difficulties; the first is that of the committed rows
WARMUP = 0.1
# Of the pretrained regime.
PRODUCTS = {"images": 3000, "triplets": 3000, "val_images": 360, "val_triplets": 4000, "other_images": 4002}
PRETRAINING = Pretraining(steps=2400, learning_rate=1e-3, batch_size=64, warmup=WARMUP)


class Generated:
    """A dataset of scenes that are made, its boxes and its feature cache for every seed; `name` is its folder's."""

    name: str
    most_between = 6  # epochs between validations, at most

    def __init__(self, args: argparse.Namespace):
        self.folder, self.device = args.folder / self.name, args.device

    def prepare(self, seed: int) -> None:
        """Make the dataset and the feature cache of a seed if they are not there."""
        self.make_dataset(seed)
        fill_cache(TrainConfig(**self.settings(seed)))

    def make_dataset(self, seed: int) -> None:
        raise NotImplementedError

    def backbone(self, seed: int) -> Path:
        """The model's YAML file."""
        raise NotImplementedError

    def schedule(self, epochs: int) -> dict:
        """A schedule that ends with the run."""
        return {"schedule_epochs": epochs, "warmup": WARMUP}

    def root(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}"

    def true_boxes(self, seed: int, split: str = "train") -> Path:
        return self.root(seed) / "boxes" / f"cirr_boxes_{split}.json"

    def settings(self, seed: int) -> dict:
        """The settings of a run from random weights."""
        return {
            "dataset": "CIRR",
            "data_path": self.root(seed),
            "backbone": str(self.backbone(seed)),
            "weights": "random",
            "batch_size": 64,
            "num_workers": 0,
            "feature_cache": str(self.folder / "features"),
            "device": self.device,
        }


class Demo(Generated):
    """Painted scenes."""

    name = "demo"

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        self.difficulty = args.difficulty

    def make_dataset(self, seed: int) -> None:
        make_demo_dataset(self.root(seed), DemoSettings(**DEMO, seed=seed, difficulty=self.difficulty))

    def backbone(self, seed: int) -> Path:
        return MODEL


class Pretrained(Generated):
    """Scenes of real products, and for every seed a Q-Former that an image-text stage has trained."""

    name = "products"

    def __init__(self, args: argparse.Namespace):
        super().__init__(args)
        self.pictures = args.photos
        self.encoder = efficientnet_lite.RANDOM if args.random_encoder else efficientnet_lite.PRETRAINED

    @cached_property
    def photos(self) -> Photos:
        return read_photos(self.pictures)

    def prepare(self, seed: int) -> None:
        """Make the dataset, the weights and the feature cache of a seed if they are not there.

        Raises InputError if the encoder's weights are not installed, or the photographs cannot be used.
        """
        if self.encoder == efficientnet_lite.PRETRAINED:
            efficientnet_lite.weights_path()
        super().prepare(seed)

    def make_dataset(self, seed: int) -> None:
        """The dataset, and the model's YAML file, whose vocabulary is of its products."""
        make_product_dataset(self.root(seed), self.photos, ProductSettings(**PRODUCTS, seed=seed))
        write_model(self.backbone(seed), list(self.photos.products), self.encoder)

    def backbone(self, seed: int) -> Path:
        return self.root(seed) / "model" / "model.yaml"

    def settings(self, seed: int) -> dict:
        """The settings of a run; its weights are trained if they are not there."""
        settings = super().settings(seed)
        weights = pretrained_weights(TrainConfig(**settings, seed=seed), PRETRAINING)
        return settings | {"weights": str(weights)}


class Cirr:
    """CIRR itself, or another dataset in its layout: one for all seeds, with upstream's settings."""

    most_between = 7

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def prepare(self, seed: int) -> None:
        fill_cache(TrainConfig(**self.settings(seed)))

    def make_dataset(self, seed: int) -> None:
        """It is there."""

    def schedule(self, epochs: int) -> dict:
        """Upstream's schedule, which is the default."""
        return {}

    def root(self, seed: int) -> Path:
        return self.args.data_path

    def true_boxes(self, seed: int, split: str = "train") -> Path:
        if split != "train":
            raise InputError("`box_file` is of training images: arms with boxes at retrieval are for generated scenes")
        return self.args.box_file

    def settings(self, seed: int) -> dict:
        return {
            "dataset": "CIRR",
            "data_path": self.args.data_path,
            "backbone": self.args.backbone,
            "weights": self.args.weights,
            "feature_cache": str(self.args.folder / "features"),
            "device": self.args.device,
            "batch_size": self.args.batch_size,
            "micro_batch": self.args.micro_batch,
            "num_workers": self.args.num_workers,
        }


Source = Generated | Cirr


def fill_cache(config: TrainConfig) -> None:
    """Build the feature cache before runs that read it at the same time."""
    import torch

    from lavis.models import load_model
    from sprc.core.runtime import choose_runtime
    from sprc.data.feature_cache_build import use_feature_cache
    from sprc.data.image_check import check_images
    from sprc.retrieval.loading import preprocess_of

    torch.manual_seed(0)
    device = choose_runtime(config.device).device
    model = load_model(config.blip_model_name, config.backbone, is_eval=True, device=device, weights=config.weights)
    preprocess = preprocess_of(config)
    triplets, validation = config.benchmark.training_triplets(preprocess), config.benchmark.validation(preprocess)
    datasets = triplets.images, *validation.galleries
    check_images(*datasets)
    use_feature_cache(config, model, device, *datasets)
