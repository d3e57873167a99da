"""A list of images with names: the gallery of a benchmark, or the images of its training triplets."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lavis.models.blip2_models.frozen_features import FrozenFeatures
from sprc.core.errors import InputError
from sprc.data.cached_rows import CachedRows
from sprc.data.feature_cache import FeatureCache
from sprc.data.images import naming_image, open_rgb, stored_size

Loaded = Tensor | FrozenFeatures | CachedRows


class GalleryItem(NamedTuple):
    """One image of a gallery, or a batch of them."""

    name: str
    image: Loaded


class ImageSet(Dataset):
    """Images by name, in the order of the gallery; an item is `(name, image)`.

    Args:
        title: whose images these are, for messages.
        root: the folder of the dataset.
        image_paths: name -> path relative to `root`.
        preprocess: PIL image -> tensor (3, S, S).

    `features` is a `FeatureCache` of these images, or None: with it `load_image` gives the frozen ViT's output.
    """

    def __init__(
        self, title: str, root: Path, image_paths: dict[str, str], preprocess: Callable[[Image.Image], Tensor]
    ):
        self.title, self.root, self.image_paths, self.preprocess = title, root, image_paths, preprocess
        self.names = list(image_paths)
        self.index_of = {name: index for index, name in enumerate(self.names)}
        self.features: FeatureCache | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple:
        return GalleryItem(self.names[index], self.load_image(self.names[index]))

    def load_image(self, name: str) -> Loaded:
        """The preprocessed image (3, S, S), or its cached features.

        Raises InputError that names the file if it is missing or broken.
        """
        if self.features is not None:
            return self.features[self.index_of[name]]
        return self.open_image(name)[0]

    def open_image(self, name: str) -> tuple[Tensor, tuple[int, int]]:
        """The preprocessed image (3, S, S), and (width, height) of the raw one in pixels; errors as `load_image`."""
        with naming_image(name, self.path_of(name)):
            image = open_rgb(self.path_of(name))
            return self.preprocess(image), image.size

    def get_image_size(self, name: str) -> tuple[int, int]:
        """(width, height) of the raw image as it is stored, in pixels.

        Raises InputError as `load_image`, and for an unknown name.
        """
        if name not in self.image_paths:
            raise InputError(f"{self.title} has no image {name!r}")
        if self.features is not None:
            width, height = self.features.sizes[self.index_of[name]]
            return int(width), int(height)
        with naming_image(name, self.path_of(name)):
            return stored_size(self.path_of(name))

    def path_of(self, name: str) -> Path:
        """The file of an image."""
        return self.root / self.image_paths[name]

    def on_device(self, images: Loaded, device: torch.device) -> Tensor | FrozenFeatures:
        """A batch of what `load_image` gives -> images (B, 3, S, S), or features (B, T, D), on the device."""
        if isinstance(images, CachedRows):
            assert self.features is not None
            return self.features.take(images)
        return images.to(device, non_blocking=True)
