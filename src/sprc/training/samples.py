"""From a batch of training triplets to what the model's `forward` takes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sprc.data.image_set import ImageSet


@dataclass(frozen=True)
class SampleMaker:
    """Maps a batch of `TrainingTriplets` to the model's `samples`.

    `sentences` makes one sentence of what each annotator wrote, `process_caption` prepares it for the tokenizer, and
    `images` moves a batch of its images to `device`.
    """

    sentences: Callable[[list], list[str]]
    process_caption: Callable[[str], str]
    images: ImageSet
    device: torch.device

    def __call__(self, batch: dict) -> dict:
        loaded = {name: self.images.on_device(batch[name], self.device) for name in ("image", "target")}
        texts = [self.process_caption(text) for text in self.sentences(batch["caption"])]
        return loaded | {"text_input": texts} | region_samples(batch)


def region_samples(batch: dict) -> dict:
    """What the region loss needs of a batch, and the regions used and dropped per image; nothing without boxes."""
    boxes = {"region_boxes": batch["reference_boxes"], "target_region_boxes": batch["target_boxes"]}
    if batch["reference_boxes"][0] is None:
        return {}
    images = 2 * len(batch["dropped"])
    used = sum(len(of_image) for side in boxes.values() for of_image in side)
    statistics = {"regions_per_image": used / images, "dropped_per_image": sum(batch["dropped"]) / images}
    return boxes | {"target_names": batch["target_name"], "statistics": statistics}
