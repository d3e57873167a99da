"""Files for a test server: checks of the names that every query gets, and writing what is read back the same."""

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from sprc.core.errors import InputError
from sprc.core.files import write_atomically
from sprc.core.reading import read_json


def check_pair_ids(found: Set[str], expected: Set[str]) -> None:
    """Raise InputError if a pair id of the captions file is missing, or another one is there."""
    missing, unknown = sorted(expected - found), sorted(found - expected)
    if missing:
        raise InputError(
            f"pair id {missing[0]} is missing, one of {len(missing)}: rank every entry of the captions file"
        )
    if unknown:
        raise InputError(f"pair id {unknown[0]} is not in the captions file, one of {len(unknown)}: use its own split")


def check_names(pair_id: str, names: Sequence[str], reference: str, k: int) -> None:
    """Raise InputError unless a query has `k` distinct names without its reference."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"pair id {pair_id}: its value must be a list of image names")
    if len(names) != k:
        raise InputError(f"pair id {pair_id} has {len(names)} names, but the server wants {k}")
    if len(set(names)) != k:
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(f"pair id {pair_id} has {repeated!r} more than once: all {k} names must differ")
    if reference in names:
        raise InputError(f"pair id {pair_id} has its own reference {reference!r} among its names: leave it out")


def check_allowed(pair_id: str, names: Sequence[str], allowed: frozenset[str], gallery: frozenset[str]) -> None:
    """Raise InputError for a name that is not allowed for a query, or not in the gallery at all."""
    for name in names:
        if name not in allowed:
            place = "a member of its group" if name in gallery else "in the gallery"
            raise InputError(f"pair id {pair_id}: {name!r} is not {place}; rank the images of the same split")


def write_submission(path: Path, submission: Mapping) -> None:
    """Write `submission` to `path` with sorted keys, then read it back and compare.

    The folder is made if it is missing, and a file of that name is replaced only once all is written.

    Raises:
        InputError: the file cannot be written, or does not hold what was written.
    """
    write_atomically(path, json.dumps(submission, sort_keys=True))
    if read_submission(path) != submission:
        raise InputError(f"{path} does not hold the submission that was written to it: check the disk")


def read_submission(path: Path) -> dict:
    """Read a submission file. Raises InputError if it is no JSON object, or has a key twice."""
    return read_json(path, dict, "it is no submission file, write it again")
