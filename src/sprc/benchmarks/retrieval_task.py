"""What a validation is made of: a gallery, queries over it, and the metrics that its scores give."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.utils.data import Dataset

from data_utils import CIRRDataset, FashionIQDataset, join_captions
from sprc.benchmarks.ranking import cirr_metrics, fashioniq_recalls


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


@dataclass(frozen=True)
class Validation:
    """Tasks by name, each ranked by itself, and how their metrics make one row of a table."""

    tasks: dict[str, RetrievalTask]
    summary: Callable[[dict[str, dict[str, float]]], dict[str, float]]

    def __str__(self) -> str:
        sizes = (f"{name}: {len(t.captions)} queries, {len(t.gallery_names)} images" for name, t in self.tasks.items())
        return "; ".join(sizes)


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


def cirr_validation(gallery: CIRRDataset, process_caption: Callable[[str], str]) -> Validation:
    """CIRR val is one task, and its metrics are the row."""
    return Validation({"CIRR val": cirr_task(gallery, process_caption)}, lambda metrics: metrics["CIRR val"])


def fashioniq_task(gallery: FashionIQDataset, process_caption: Callable[[str], str]) -> RetrievalTask:
    """One garment type of FashionIQ val: the reference takes part in the ranking."""
    entries = gallery.triplets
    metrics = partial(
        fashioniq_recalls, gallery_names=gallery.names, target_names=[entry["target"] for entry in entries]
    )
    captions = [process_caption(join_captions(entry["captions"])) for entry in entries]
    return RetrievalTask(gallery, gallery.names, [entry["candidate"] for entry in entries], captions, metrics)


def fashioniq_validation(galleries: dict[str, FashionIQDataset], process_caption: Callable[[str], str]) -> Validation:
    """FashionIQ val: a task for every garment type."""
    tasks = {kind: fashioniq_task(gallery, process_caption) for kind, gallery in galleries.items()}
    return Validation(tasks, fashioniq_summary)


def fashioniq_summary(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """Recalls by type, their averages over the types, and the average of both averages."""
    row = {f"{kind}_{name}": value for kind, recalls in metrics.items() for name, value in recalls.items()}
    for name in ("recall_at10", "recall_at50"):
        row[f"average_{name}"] = sum(recalls[name] for recalls in metrics.values()) / len(metrics)
    return row | {"average_recall": (row["average_recall_at10"] + row["average_recall_at50"]) / 2}
