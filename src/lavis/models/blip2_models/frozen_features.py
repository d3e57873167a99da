"""What the frozen ViT gives, as a type of its own: an image and its features are both tensors."""

from typing import NamedTuple

import torch
from torch import Tensor


class FrozenFeatures(NamedTuple):
    """The frozen ViT's output before `ln_vision`: `tokens` (B, P + 1, D), CLS first, or (P + 1, D) of one image.

    The model takes it in the place of images (B, 3, S, S). `default_collate` stacks it, and a loader pins it.
    """

    tokens: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "FrozenFeatures":
        """The same on a device, as `Tensor.to`."""
        return FrozenFeatures(self.tokens.to(device, non_blocking=non_blocking))

    def images(self, chosen: slice) -> "FrozenFeatures":
        """The features of some images of the batch."""
        return FrozenFeatures(self.tokens[chosen])
