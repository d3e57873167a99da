import json
import os
from pathlib import Path
from unittest import mock

import pytest
import torch

from sprc.benchmarks.cirr import CIRR, NAMES_PER_PAIR, build_submission, check_submission, submission_path
from sprc.benchmarks.ranking import top_group_names, top_names
from sprc.benchmarks.submission import read_submission, write_submission
from sprc.core.errors import InputError
from sprc.data.triplets import Query

GALLERY = [f"img-{image}" for image in range(8)]
QUERIES = [
    Query("img-0", "", group=tuple(GALLERY[:6]), pair_id=12063),
    Query("img-5", "", group=tuple(GALLERY[2:8]), pair_id=7),
]
NAMES = {"12063": ["img-1", "img-3", "img-2"], "7": ["img-7", "img-4", "img-2"]}


def submission(metric="recall", **changed):
    return {"version": "rc2", "metric": metric, **NAMES, **changed}


def check(entries, queries=QUERIES, k=3):
    check_submission(entries, queries, k, GALLERY)


def test_build_gives_version_metric_and_names_by_pair_id():
    built = build_submission("recall_subset", [12063, 7], [tuple(NAMES["12063"]), NAMES["7"]])
    assert built == submission("recall_subset")


def test_build_refuses_what_no_file_may_hold():
    with pytest.raises(InputError, match="pair id 7 occurs twice"):
        build_submission("recall", [7, 7], [["a"], ["b"]])
    with pytest.raises(ValueError, match="metric 'precision' is none of recall, recall_subset"):
        build_submission("precision", [7], [["a"]])
    with pytest.raises(ValueError, match="shorter"):
        build_submission("recall", [7, 8], [["a"]])


@pytest.mark.parametrize("metric", NAMES_PER_PAIR)
def test_check_takes_a_good_submission(metric):
    check(submission(metric))


def test_members_outside_the_group_are_fine_for_recall_only():
    outside = {"7": ["img-0", "img-4", "img-2"]}
    check(submission("recall", **outside))
    with pytest.raises(InputError, match="pair id 7: 'img-0' is not a member of its group"):
        check(submission("recall_subset", **outside))


@pytest.mark.parametrize("metric", NAMES_PER_PAIR)
@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["img-7", "img-4"], "pair id 7 has 2 names, but the server wants 3"),
        (["img-7", "img-4", "img-2", "img-3"], "pair id 7 has 4 names"),
        (["img-7", "img-4", "img-7"], "pair id 7 has 'img-7' more than once"),
        (["img-7", "img-5", "img-4"], "pair id 7 has its own reference 'img-5'"),
        (["img-7", "img-4", "img-9"], "pair id 7: 'img-9' is not in the gallery"),
        ("img", "pair id 7: its value must be a list"),
        (["img-7", "img-4", 2], "pair id 7: its value must be a list"),
        (None, "pair id 7: its value must be a list"),
    ],
)
def test_check_names_the_pair_id_of_faulty_names(metric, names, message):
    with pytest.raises(InputError, match=message):
        check(submission(metric, **{"7": names}))


def test_check_names_a_missing_and_an_unknown_pair_id():
    missing = submission()
    del missing["12063"]
    with pytest.raises(InputError, match="pair id 12063 is missing"):
        check(missing)
    with pytest.raises(InputError, match="pair id 99 is not in the captions file"):
        check(submission(**{"99": NAMES["7"]}))
    with pytest.raises(InputError, match="pair id 7 occurs twice in the captions file"):
        check(submission(), queries=[*QUERIES, QUERIES[1]])


@pytest.mark.parametrize("changed", [{"version": "rc1"}, {"metric": "precision"}, {"metric": ["recall"]}])
def test_check_refuses_another_version_or_metric(changed):
    with pytest.raises(InputError, match="version 'rc2' and metric recall or recall_subset"):
        check(submission() | changed)


def test_file_names_are_those_of_upstream():
    assert submission_path("recall", "run") == Path("submission/CIRR/recall_submission_run_2.json")
    assert submission_path("recall_subset", "run") == Path("submission/CIRR/recall_subset_submission_run_2.json")


def test_file_has_sorted_keys_and_reads_back(tmp_path):
    path = tmp_path / "new" / "folder" / "recall_submission_run_2.json"
    write_submission(path, submission())
    assert path.read_text() == json.dumps(submission(), sort_keys=True)
    assert read_submission(path) == submission()
    assert os.listdir(path.parent) == [path.name]


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path):
    path = tmp_path / "recall.json"
    write_submission(path, submission())
    with mock.patch("os.fsync", side_effect=OSError("disk full")), pytest.raises(InputError, match="disk full"):
        write_submission(path, submission("recall_subset"))
    assert read_submission(path) == submission()


def test_a_file_that_reads_back_otherwise_is_an_error(tmp_path):
    path = tmp_path / "recall.json"
    with pytest.raises(InputError, match=r"recall\.json does not hold the submission"):
        write_submission(path, submission(**{"7": tuple(NAMES["7"])}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"7": ["a"], "7": ["b"]}', "the object has the key '7' twice"),
        ("[]", "should hold a JSON dict"),
        ("{", "no submission file"),
    ],
)
def test_a_file_that_is_no_submission_is_an_input_error(tmp_path, text, message):
    path = tmp_path / "recall.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_submission(path)


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"no file .*none\.json: it is no submission file"):
        read_submission(tmp_path / "none.json")


@pytest.mark.parametrize("metric", NAMES_PER_PAIR)
def test_both_files_for_the_real_test1_annotations(shared, tmp_path, metric):
    benchmark = CIRR(shared)
    gallery = benchmark.image_paths("test1")
    queries, gallery = benchmark.queries("test1", gallery), list(gallery)
    # Few distinct scores, so that nearly every place in the lists is decided by ties.
    scores = torch.randint(0, 8, (len(queries), len(gallery)), generator=torch.Generator().manual_seed(0)).half()
    references = [query.reference for query in queries]
    k = NAMES_PER_PAIR[metric]
    if metric == "recall":
        names = top_names(scores, gallery, k, references)
    else:
        names = top_group_names(scores, gallery, [query.group for query in queries], references, k)
    path = submission_path(metric, "run", tmp_path)
    write_submission(path, build_submission(metric, [query.pair_id for query in queries], names))
    written = read_submission(path)
    check_submission(written, queries, k, gallery)
    assert len(written) == len(queries) + 2
