"""FashionIQ (Wu et al., CVPR 2021): annotations, training, validation and metrics of three garment types."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from sprc.benchmarks.benchmark import FIX, Benchmark, Metrics, Preset, RetrievalTask, Validation, read_entries
from sprc.benchmarks.ranking import gallery_columns, name_columns, recall_at, require_sizes, target_ranks
from sprc.core.errors import InputError, shown
from sprc.core.places import REPOSITORY
from sprc.core.reading import read_json
from sprc.data.image_files import file_names
from sprc.data.image_set import ImageSet
from sprc.data.preprocess import Preprocess
from sprc.data.triplets import Query

PLAIN_NAMES = "write names without a path, / or \\"
TYPES = ("dress", "shirt", "toptee")
SUFFIXES = (".png", ".jpg", ".jpeg")  # an image has the first of these for which a file exists


def schedule(num_epochs: int) -> dict[str, float]:
    """OneCycleLR over the epochs that are run, rising for one and a half of them from a hundredth of the peak.

    Upstream fails with a single epoch: here it rises for three quarters of it.
    """
    return {"epochs": num_epochs, "pct_start": 1.5 / max(num_epochs, 2), "div_factor": 100.0}


class FashionIQ(Benchmark):
    """A gallery for each garment type. A query has two sentences, and its reference takes part in the ranking."""

    name = "FashionIQ"
    preset = Preset(
        tag="fiq",
        monitor="average_recall",
        best_file="tuned_clip_best.pt",
        schedule=schedule,
        num_epochs=30,
        learning_rate=2e-5,
        loss_rtc=1.0,
        loss_align=1.0,
    )
    protocols: ClassVar = {
        "split": "every image of the split list",
        "captions": "the images that occur in captions",
    }
    default_root = REPOSITORY / "fashionIQ_dataset"

    def annotation_files(self) -> list[Path]:
        train = [fashioniq_files(self.root, kind, "train")[0] for kind in TYPES]
        return [*train, *(path for kind in TYPES for path in fashioniq_files(self.root, kind, "val"))]

    def queries(self, split: str, types: Sequence[str] = TYPES) -> dict[str, list[Query]]:
        """Garment type -> its queries."""
        return queries_of(self.entries(split, types), split)

    def entries(self, split: str, types: Sequence[str] = TYPES) -> dict[str, list[dict]]:
        """Garment type -> the entries of its captions file, as they stand there."""
        if not os.path.isdir(self.root):
            raise InputError(f"no folder {self.root}: give the folder that holds captions/ and images/ as `data_path`")
        captions = {kind: fashioniq_files(self.root, kind, split)[0] for kind in types}
        return {kind: read_entries(path, partial(_entry_problem, split=split)) for kind, path in captions.items()}

    def image_paths(self, split: str, queries: Mapping[str, list[Query]]) -> dict[str, str]:
        """name -> path relative to the root, in the order of the gallery of the types of `queries`.

        An image is a .png, .jpg or .jpeg, in lower or upper case; the first of these that is there.
        """
        lists = [_read_list(self.root, kind, split, of_kind) for kind, of_kind in queries.items()]
        listed, named = dict.fromkeys(chain(*lists)), set(all_names(queries))
        return fashioniq_image_paths(self.root, [n for n in listed if self.gallery == "split" or n in named])

    def named_paths(self, queries: Mapping[str, list[Query]]) -> dict[str, str]:
        """As `image_paths`, of the images that the queries name, in their order."""
        return fashioniq_image_paths(self.root, all_names(queries))

    def training_images(self, preprocess: Preprocess) -> tuple[ImageSet, list[Query]]:
        queries = self.queries("train")
        images = ImageSet("FashionIQ train", self.root, self.named_paths(queries), preprocess)
        return images, [*chain(*queries.values())]

    def training_sentences(self, captions: list) -> list[str]:
        return join_captions_randomly(captions)

    def validation(self, preprocess: Preprocess) -> Validation:
        return Validation({kind: self._task(kind, preprocess) for kind in TYPES}, summary)

    def _task(self, kind: str, preprocess: Preprocess) -> RetrievalTask:
        queries = self.queries("val", [kind])
        gallery = ImageSet("FashionIQ val", self.root, self.image_paths("val", queries), preprocess)
        return validation_task(gallery, queries[kind])


def all_names(queries: Mapping[str, list[Query]]) -> list[str]:
    """The images that the queries name, each once, in their order."""
    return [*dict.fromkeys(name for query in chain(*queries.values()) for name in (query.reference, *query.targets))]


def validation_task(gallery: ImageSet, queries: list[Query]) -> RetrievalTask:
    """One garment type of FashionIQ val, with its metrics."""
    targets = [query.target for query in queries]
    metrics = partial(fashioniq_recalls, gallery_names=gallery.names, target_names=targets)
    return RetrievalTask(gallery, queries, [join_captions(list(query.caption)) for query in queries], metrics)


def summary(metrics: dict[str, Metrics]) -> Metrics:
    """Recalls by type, their averages over the types, and the average of both averages."""
    row = {f"{kind}_{name}": value for kind, recalls in metrics.items() for name, value in recalls.items()}
    for name in ("recall_at10", "recall_at50"):
        row[f"average_{name}"] = sum(recalls[name] for recalls in metrics.values()) / len(metrics)
    return row | {"average_recall": (row["average_recall_at10"] + row["average_recall_at50"]) / 2}


def fashioniq_recalls(scores: Tensor, gallery_names: Sequence[str], target_names: Sequence[str]) -> dict[str, float]:
    """The FashionIQ metrics of one garment type in percent; the reference image takes part in the ranking.

    Args:
        scores: (Q, N).
        gallery_names: N names, column by column.
        target_names: Q names.

    Raises:
        InputError: a name that is not in the gallery, a gallery name that occurs twice, or no query at all.
        ValueError: sizes that do not fit, or NaN in the scores (`InputError`).
    """
    require_sizes(scores, gallery_names, target_names)
    targets = name_columns(target_names, "target", gallery_columns(gallery_names)).to(scores.device)
    ranks = target_ranks(scores, targets)
    return {f"recall_at{k}": recall_at(ranks, k) for k in (10, 50)}


def fashioniq_files(root: Path, kind: str, split: str) -> tuple[Path, Path]:
    """The captions file and the image list of a garment type and split of FashionIQ."""
    return root / "captions" / f"cap.{kind}.{split}.json", root / "image_splits" / f"split.{kind}.{split}.json"


def fashioniq_image_paths(root: Path, names: Iterable[str]) -> dict[str, str]:
    """name -> path below `root`, with the first of `SUFFIXES` that exists, lower case before upper case.

    A folder, or a link to nothing, comes after every file. An image that does not exist gets `.png`.
    """
    present: dict[str, list[str]] = {}
    for file in file_names(root / "images"):
        stem, suffix = os.path.splitext(file)
        if suffix.lower() in SUFFIXES:
            present.setdefault(stem, []).append(suffix)
    return {name: os.path.join("images", _best_file(root / "images", name, present.get(name, []))) for name in names}


def _best_file(folder: Path, name: str, suffixes: list[str]) -> str:
    files = [name + suffix for suffix in sorted(suffixes, key=_preference)]
    if len(files) > 1:
        files.sort(key=lambda file: not os.path.isfile(folder / file))
    return files[0] if files else f"{name}.png"


def _preference(suffix: str) -> tuple[bool, int, str]:
    return suffix != suffix.lower(), SUFFIXES.index(suffix.lower()), suffix


def _read_list(root: Path, kind: str, split: str, queries: list[Query]) -> list[str]:
    """The gallery of a type, in which every image of its queries must be."""
    captions, path = fashioniq_files(root, kind, split)
    names = read_json(path, list, FIX)
    wrong = [name for name in names if not _is_name(name)]
    if wrong or not names:
        problem = f"lists {shown(wrong[0])}; {PLAIN_NAMES}" if wrong else f"is empty; {FIX}"
        raise InputError(f"{path} {problem}")
    known = set(names)
    for index, query in enumerate(queries):
        for name in (query.reference, *query.targets):
            if name not in known:
                raise InputError(f"{captions}: entry {index} names image {name!r}, which {path} does not list: {FIX}")
    return names


def queries_of(entries: Mapping[str, list[dict]], split: str) -> dict[str, list[Query]]:
    """Garment type -> its queries, of its entries."""
    return {kind: [query_of(entry, split) for entry in of_kind] for kind, of_kind in entries.items()}


def query_of(entry: dict, split: str) -> Query:
    """The query that an entry of a captions file describes; those of the test split have no target."""
    return Query(entry["candidate"], entry["captions"], (entry["target"],) if split != "test" else ())


def _entry_problem(entry, split: str) -> str | None:
    """What is wrong with one entry of a FashionIQ captions file, or None."""
    if not isinstance(entry, dict):
        return f"is {shown(entry)}, not an object"
    keys = ["candidate", "captions"] + (["target"] if split != "test" else [])
    absent = [key for key in keys if key not in entry]
    if absent:
        return f"lacks {', '.join(absent)}"
    captions = entry["captions"]
    if not isinstance(captions, list) or len(captions) != 2 or not all(isinstance(c, str) for c in captions):
        return f"(candidate {shown(entry['candidate'])}) needs two texts as captions, not {shown(captions)}"
    names = _names_of(entry, split)
    if not all(map(_is_name, names)):
        return f"names images {shown(names)}: {PLAIN_NAMES}"
    return None


def _is_name(name) -> bool:
    return isinstance(name, str) and name != "" and not {"/", "\\", "\0"} & set(name)


def _names_of(entry: dict, split: str) -> list[str]:
    return [entry["candidate"]] + ([entry["target"]] if split != "test" else [])


def join_captions(captions: list[str]) -> str:
    """The two captions of a FashionIQ entry as one sentence: "first and second"."""
    first, second = (caption.strip(".?, ") for caption in captions)
    return f"{first} and {second}"


def join_captions_randomly(batch: list[list[str]]) -> list[str]:
    """One of four sentences for every pair of captions, in training: both in either order, the first, the second.

    Draws from torch's global CPU generator, which the trainer seeds by epoch.
    """
    choices = torch.randint(4, (len(batch),)).tolist()
    stripped = [[caption.strip(".?, ") for caption in captions] for captions in batch]
    return [
        (f"{first} and {second}", f"{second} and {first}", first, second)[choice]
        for choice, (first, second) in zip(choices, stripped, strict=True)
    ]
