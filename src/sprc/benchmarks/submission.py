"""The two files that the CIRR test server takes: build them, check them, write them. Pure functions of names."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sprc.core.errors import InputError
from sprc.core.files import read_json, write_atomically

VERSION = "rc2"
# Metric of the server -> how many names every pair gets.
NAMES_PER_PAIR = {"recall": 50, "recall_subset": 3}


def submission_path(metric: str, name: str, folder: Path = Path("submission/CIRR")) -> Path:
    """Upstream's file name for `metric` ("recall" or "recall_subset") and the run's `name`, in `folder`."""
    return folder / f"{metric}_submission_{name}_2.json"


def build_submission(metric: str, pair_ids: Sequence[int], names: Sequence[Sequence[str]]) -> dict:
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
    submission = {"version": VERSION, "metric": metric}
    for pair_id, best in zip(pair_ids, names, strict=True):
        if str(pair_id) in submission:
            raise InputError(f"pair id {pair_id} occurs twice: give every pair id once in the captions file")
        submission[str(pair_id)] = list(best)
    return submission


def check_submission(submission: Mapping, annotations: Iterable[Mapping], k: int, gallery_names: Iterable[str]) -> None:
    """Check that the server can take a submission as it is.

    Every pair id occurs once and no other does; each has exactly `k` distinct names, all in the gallery, none the
    reference; for "recall_subset" all are members of its group.

    Args:
        submission: as `build_submission` or `read_submission` returns it.
        annotations: the entries of the captions file: `pairid`, `reference`, `img_set` with `members`.
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
    entry_of = _entries_by_pair_id(annotations)
    _check_pair_ids(submission.keys() - {"version", "metric"}, entry_of.keys())
    gallery = frozenset(gallery_names)
    for pair_id, entry in entry_of.items():
        allowed = gallery & set(entry["img_set"]["members"]) if metric == "recall_subset" else gallery
        _check_names(pair_id, submission[pair_id], entry["reference"], k)
        _check_allowed(pair_id, submission[pair_id], allowed, gallery)


def _entries_by_pair_id(annotations: Iterable[Mapping]) -> dict[str, Mapping]:
    entry_of = {}
    for entry in annotations:
        pair_id = str(entry["pairid"])
        if pair_id in entry_of:
            raise InputError(f"pair id {pair_id} occurs twice in the captions file: give every pair id once")
        entry_of[pair_id] = entry
    return entry_of


def _check_pair_ids(found: Iterable[str], expected: Iterable[str]) -> None:
    missing, unknown = sorted(expected - found), sorted(found - expected)
    if missing:
        raise InputError(
            f"pair id {missing[0]} is missing, one of {len(missing)}: rank every entry of the captions file"
        )
    if unknown:
        raise InputError(f"pair id {unknown[0]} is not in the captions file, one of {len(unknown)}: use its own split")


def _check_names(pair_id: str, names: Sequence[str], reference: str, k: int) -> None:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"pair id {pair_id}: its value must be a list of image names")
    if len(names) != k:
        raise InputError(f"pair id {pair_id} has {len(names)} names, but the server wants {k}")
    if len(set(names)) != k:
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(f"pair id {pair_id} has {repeated!r} more than once: all {k} names must differ")
    if reference in names:
        raise InputError(f"pair id {pair_id} has its own reference {reference!r} among its names: leave it out")


def _check_allowed(pair_id: str, names: Sequence[str], allowed: frozenset[str], gallery: frozenset[str]) -> None:
    for name in names:
        if name not in allowed:
            place = "a member of its group" if name in gallery else "in the gallery"
            raise InputError(f"pair id {pair_id}: {name!r} is not {place}; rank the images of the same split")


def write_submission(path: Path, submission: Mapping) -> None:
    """Write `submission` to `path` with sorted keys, then read it back and compare.

    The folder is made where it is missing, and a file of that name is replaced only once all is written.

    Raises:
        InputError: the file cannot be written, or does not hold what was written.
    """
    write_atomically(path, json.dumps(submission, sort_keys=True))
    if read_submission(path) != submission:
        raise InputError(f"{path} does not hold the submission that was written to it: check the disk")


def read_submission(path: Path) -> dict:
    """Read a submission file. Raises InputError where it is no JSON object, or has a key twice."""
    return read_json(path, dict, "it is no submission file, write it again")
