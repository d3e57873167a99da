"""CIRR (Liu et al., ICCV 2021): annotations, training, validation, metrics, and the files for its test server."""

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from sprc.benchmarks.benchmark import FIX, Benchmark, Preset, RetrievalTask, Validation, read_entries
from sprc.benchmarks.ranking import (
    gallery_columns,
    group_columns,
    group_ranks,
    name_columns,
    recall_at,
    require_sizes,
    target_ranks,
    top_group_names,
    top_names,
)
from sprc.benchmarks.submission import check_allowed, check_names, check_pair_ids, write_submission
from sprc.core.errors import InputError, shown
from sprc.core.places import REPOSITORY
from sprc.core.reading import read_json, readable
from sprc.data.image_set import ImageSet
from sprc.data.preprocess import Preprocess
from sprc.data.triplets import Query

VERSION = "rc2"
# Metric of the server -> how many names every pair gets.
NAMES_PER_PAIR = {"recall": 50, "recall_subset": 3}


def schedule(num_epochs: int) -> dict[str, float]:
    """OneCycleLR planned for 80 epochs, as upstream; more epochs than that are planned as they are."""
    return {"epochs": max(80, num_epochs), "pct_start": 1 / 50}


class CIRR(Benchmark):
    """One gallery a split. The reference takes no part in a ranking; a query also has a group of six similar images."""

    name = "CIRR"
    preset = Preset(
        tag="cirr",
        monitor="arithmetic_mean",
        best_file="tuned_clip_arithmetic.pt",
        schedule=schedule,
        num_epochs=50,
        learning_rate=1e-5,
        loss_rtc=0.4,
        loss_align=0.4,
    )
    protocols: ClassVar = {"split": "every image of the split list"}
    default_root = REPOSITORY / "cirr_dataset"

    def annotation_files(self) -> list[Path]:
        return [path for split in ("train", "val") for path in cirr_files(self.root, split)]

    def image_paths(self, split: str) -> dict[str, str]:
        """name -> path relative to the root, in file order, which is the order of the gallery."""
        return read_image_split(self.root, split)

    def queries(self, split: str, known_names: Mapping[str, str]) -> list[Query]:
        """The queries of a split, whose images must be among `known_names`."""
        return [query_of(entry, split) for entry in self.entries(split, known_names)]

    def entries(self, split: str, known_names: Mapping[str, str]) -> list[dict]:
        """The entries of a captions file, as they stand there."""
        path, _ = cirr_files(self.root, split)
        return read_entries(path, partial(_entry_problem, split=split, known_names=known_names))

    def training_images(self, preprocess: Preprocess) -> tuple[ImageSet, list[Query]]:
        return self._images_and_queries("train", preprocess)

    def _images_and_queries(self, split: str, preprocess: Preprocess) -> tuple[ImageSet, list[Query]]:
        images = ImageSet(f"CIRR {split}", self.root, self.image_paths(split), preprocess)
        return images, self.queries(split, images.image_paths)

    def validation(self, preprocess: Preprocess) -> Validation:
        task = validation_task(*self._images_and_queries("val", preprocess))
        return Validation({"CIRR val": task}, lambda metrics: metrics["CIRR val"])

    def test_task(self, preprocess: Preprocess) -> RetrievalTask:
        return make_task(*self._images_and_queries("test1", preprocess))

    def write_submission(self, task: RetrievalTask, scores: Tensor, place: Path) -> list[Path]:
        return [self._write_file(metric, task, scores, place) for metric in NAMES_PER_PAIR]

    def _write_file(self, metric: str, task: RetrievalTask, scores: Tensor, place: Path) -> Path:
        queries, names, k = task.queries, task.gallery.names, NAMES_PER_PAIR[metric]
        if metric == "recall":
            best = top_names(scores, names, k, task.reference_names)
        else:
            best = top_group_names(scores, names, [query.group for query in queries], task.reference_names, k)
        submission = build_submission(metric, [query.pair_id for query in queries], best)
        check_submission(submission, queries, k, names)
        path = submission_path(metric, place.name, place.parent)
        write_submission(path, submission)
        return path


def query_of(entry: dict, split: str) -> Query:
    """The query that an entry of a captions file describes; the test server alone knows the targets of `test1`."""
    targets = (entry["target_hard"],) if split != "test1" else ()
    return Query(entry["reference"], entry["caption"], targets, tuple(entry["img_set"]["members"]), entry["pairid"])


def make_task(gallery: ImageSet, queries: list[Query], **options) -> RetrievalTask:
    """Queries with their sentences over a gallery."""
    sentences = [str(query.caption) for query in queries]
    return RetrievalTask(gallery, queries, sentences, ranks_reference=False, **options)


def validation_task(gallery: ImageSet, queries: list[Query]) -> RetrievalTask:
    """CIRR val, with its metrics."""
    metrics = partial(
        cirr_metrics,
        gallery_names=gallery.names,
        reference_names=[query.reference for query in queries],
        target_names=[query.target for query in queries],
        group_members=[query.group for query in queries],
    )
    return make_task(gallery, queries, metrics=metrics)


def cirr_files(root: Path, split: str) -> tuple[Path, Path]:
    """The captions file and the image list of a split of CIRR."""
    folder = root / "cirr"
    return folder / "captions" / f"cap.rc2.{split}.json", folder / "image_splits" / f"split.rc2.{split}.json"


def read_image_split(root: Path, split: str) -> dict[str, str]:
    """name -> path relative to `root`, in file order, which is the order of the gallery."""
    with readable(root, FIX):
        if not root.is_dir():
            raise InputError(f"no folder {root}: give the folder that holds cirr/ and the images as `data_path`")
    _, path = cirr_files(root, split)
    paths = read_json(path, dict, FIX)
    for name, place in paths.items():
        problem = _place_problem(name, place)
        if problem:
            raise InputError(f"{path}: the path of {name!r} is {shown(place)}; {problem}")
    if not paths:
        raise InputError(f"{path} lists no image: download it again")
    return {name: os.path.normpath(place) for name, place in paths.items()}


def _place_problem(name: str, place) -> str | None:
    """What is wrong with the path of an image in a split, or None."""
    if isinstance(place, str) and "\\" in place:
        return "write it with / instead of \\"
    if not name:
        return "give the image a name"
    inside = isinstance(place, str) and not os.path.isabs(place) and ".." not in place.split("/")
    if not inside or "\0" in place or os.path.normpath(place) == ".":
        return "write it as './train/34/name.png'"
    return None


def _entry_problem(entry, split: str, known_names: Mapping[str, str]) -> str | None:
    """What is wrong with one entry of the captions file, or None."""
    keys = ["pairid", "reference", "caption", "img_set"] + (["target_hard"] if split != "test1" else [])
    if not isinstance(entry, dict):
        return f"is {shown(entry)}, not an object"
    absent = [key for key in keys if key not in entry]
    pair = f"(pairid {shown(entry.get('pairid'))})"
    if absent:
        return f"{pair} lacks {', '.join(absent)}"
    members = entry["img_set"].get("members") if isinstance(entry["img_set"], dict) else None
    if not isinstance(entry["caption"], str) or not isinstance(members, list):
        return f"{pair} needs a text as caption and a list as img_set.members"
    names = [entry["reference"]] + ([entry["target_hard"]] if split != "test1" else [])
    names += members if split != "train" else []  # a training reads none of them
    unknown = [name for name in names if not isinstance(name, str) or name not in known_names]
    if unknown:
        return f"{pair} names {shown(unknown[0])}, which split.rc2.{split}.json does not list"
    if split == "val" and entry["target_hard"] not in set(members) - {entry["reference"]}:
        return f"{pair} has a target that is none of the other members of its group"
    return None


def cirr_metrics(
    scores: Tensor,
    gallery_names: Sequence[str],
    reference_names: Sequence[str],
    target_names: Sequence[str],
    group_members: Sequence[Sequence[str]],
) -> dict[str, float]:
    """The CIRR validation metrics in percent, in the order of `validation_metrics.csv` (Liu et al., ICCV 2021).

    The reference image takes no part in a ranking. `group_recall_at*` rank the target among the other members of its
    group. The arithmetic, harmonic and geometric means are those of the seven recalls.

    Args:
        scores: (Q, N).
        gallery_names: N names, column by column.
        reference_names, target_names: Q names each.
        group_members: Q groups, with or without the reference itself.

    Raises:
        InputError: a name that is not in the gallery, a gallery name that occurs twice, a target that is not in its
            group or is its own reference, or no query at all.
        ValueError: sizes that do not fit, or NaN in the scores (`InputError`).
    """
    require_sizes(scores, gallery_names, reference_names, target_names, group_members)
    column_of = gallery_columns(gallery_names)
    targets = name_columns(target_names, "target", column_of).to(scores.device)
    references = name_columns(reference_names, "reference", column_of).to(scores.device)
    groups = group_columns(group_members, reference_names, column_of).to(scores.device)
    _require_targets_in_groups(targets, groups, target_names)
    in_group = group_ranks(scores, targets, groups)
    overall = target_ranks(scores, targets, references)
    recalls = {f"group_recall_at{k}": recall_at(in_group, k) for k in (1, 2, 3)}
    recalls |= {f"recall_at{k}": recall_at(overall, k) for k in (1, 5, 10, 50)}
    return recalls | _means(recalls)


def _means(recalls: dict[str, float]) -> dict[str, float]:
    """CIRR's summary columns. A recall of 0 makes the harmonic and the geometric mean 0."""
    values = list(recalls.values())
    return {
        "mean(R@5+R_s@1)": (recalls["recall_at5"] + recalls["group_recall_at1"]) / 2,
        "arithmetic_mean": statistics.fmean(values),
        "harmonic_mean": statistics.harmonic_mean(values) if min(values) > 0 else 0.0,
        "geometric_mean": statistics.geometric_mean(values) if min(values) > 0 else 0.0,
    }


def _require_targets_in_groups(targets: Tensor, groups: Tensor, target_names: Sequence[str]) -> None:
    strangers = (~(groups == targets[:, None]).any(dim=1)).nonzero()[:, 0].tolist()
    if strangers:
        raise InputError(
            f"query {strangers[0]}: target {target_names[strangers[0]]!r} is not among the members of its group other "
            "than the reference; correct the entry in the captions file"
        )


def submission_path(metric: str, name: str, folder: Path = Path("submission/CIRR")) -> Path:
    """Upstream's file name for `metric` ("recall" or "recall_subset") and the run's `name`, in `folder`."""
    return folder / f"{metric}_submission_{name}_2.json"


def build_submission(metric: str, pair_ids: Sequence[int | str | None], names: Sequence[Sequence[str]]) -> dict:
    """A submission: `{"version": "rc2", "metric": metric, "<pair id>": [names, best first], ...}`.

    Args:
        metric: "recall" or "recall_subset".
        pair_ids: Q pair ids of the captions file.
        names: Q lists of gallery names, best first.

    Raises:
        InputError: a pair id that occurs twice.
        ValueError: another metric, or lists of different length.
    """
    if metric not in NAMES_PER_PAIR:
        raise ValueError(f"metric {metric!r} is none of {', '.join(NAMES_PER_PAIR)}")
    submission: dict[str, str | list[str]] = {"version": VERSION, "metric": metric}
    for pair_id, best in zip(pair_ids, names, strict=True):
        if str(pair_id) in submission:
            raise InputError(f"pair id {pair_id} occurs twice: give every pair id once in the captions file")
        submission[str(pair_id)] = list(best)
    return submission


def check_submission(submission: Mapping, queries: Sequence[Query], k: int, gallery_names: Iterable[str]) -> None:
    """Check that the server can take a submission as it is.

    Every pair id occurs once and no other does; each has exactly `k` distinct names, all in the gallery, none the
    reference; for "recall_subset" all are members of its group.

    Args:
        submission: as `build_submission` or `read_submission` returns it.
        queries: the entries of the captions file.
        k: names per pair, see `NAMES_PER_PAIR`.
        gallery_names: the names of the image split.

    Raises:
        InputError: the first fault, with its pair id.
    """
    metric = submission.get("metric")
    if submission.get("version") != VERSION or metric not in list(NAMES_PER_PAIR):
        raise InputError(
            f"a submission has version {VERSION!r} and metric {' or '.join(NAMES_PER_PAIR)}, "
            f"but this one {submission.get('version')!r} and {metric!r}"
        )
    query_of = _queries_by_pair_id(queries)
    check_pair_ids(submission.keys() - {"version", "metric"}, query_of.keys())
    gallery = frozenset(gallery_names)
    for pair_id, query in query_of.items():
        allowed = gallery & set(query.group) if metric == "recall_subset" else gallery
        check_names(pair_id, submission[pair_id], query.reference, k)
        check_allowed(pair_id, submission[pair_id], allowed, gallery)


def _queries_by_pair_id(queries: Sequence[Query]) -> dict[str, Query]:
    query_of: dict[str, Query] = {}
    for query in queries:
        pair_id = str(query.pair_id)
        if pair_id in query_of:
            raise InputError(f"pair id {pair_id} occurs twice in the captions file: give every pair id once")
        query_of[pair_id] = query
    return query_of
