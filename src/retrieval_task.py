"""What a validation is made of: a gallery, queries over it, and the metrics that its scores give."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.utils.data import Dataset

from data_utils import CIRRDataset
from validate_blip import cirr_metrics


@dataclass(frozen=True)
class RetrievalTask:
    """Q queries against N gallery images.

    `gallery` yields `(name, image)`, in the order of `gallery_names`; `captions` are processed for the tokenizer;
    `metrics` maps scores (Q, N) to named percentages.
    """

    gallery: Dataset
    gallery_names: list[str]
    reference_names: list[str]
    captions: list[str]
    metrics: Callable[[Tensor], dict[str, float]]


def cirr_task(gallery: CIRRDataset, process_caption: Callable[[str], str]) -> RetrievalTask:
    """CIRR val: `gallery` is the split in classic mode, which holds its triplets too."""
    entries = gallery.triplets
    references = [entry["reference"] for entry in entries]
    metrics = partial(
        cirr_metrics,
        gallery_names=gallery.names,
        reference_names=references,
        target_names=[entry["target_hard"] for entry in entries],
        group_members=[entry["img_set"]["members"] for entry in entries],
    )
    captions = [process_caption(entry["caption"]) for entry in entries]
    return RetrievalTask(gallery, gallery.names, references, captions, metrics)


def cirr_test_task(gallery: CIRRDataset, process_caption: Callable[[str], str]) -> RetrievalTask:
    """CIRR test1: its targets are known to the server alone, so there are no metrics."""
    entries = gallery.triplets
    captions = [process_caption(entry["caption"]) for entry in entries]
    return RetrievalTask(gallery, gallery.names, [entry["reference"] for entry in entries], captions, lambda scores: {})
