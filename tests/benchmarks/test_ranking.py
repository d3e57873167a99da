import hashlib
import json
from unittest import mock

import numpy as np
import pytest
import torch
from benchmark_metrics import load_annotations, metric_names, naive_cirr_metrics, recipe_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from sprc.benchmarks.cirr import cirr_metrics
from sprc.benchmarks.fashioniq import fashioniq_recalls
from sprc.benchmarks.ranking import (
    group_ranks,
    recall_at,
    target_ranks,
    top_group_names,
    top_names,
)
from sprc.core.errors import InputError

examples = settings(max_examples=80, deadline=None, derandomize=True, database=None)
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

# --- ranks and recalls ----------------------------------------------------------------------------------------------


def slow_rank(row, target, candidates):
    return sorted(candidates, key=lambda column: (-row[column], column)).index(target)


@st.composite
def rankings(draw):
    """Scores with many ties, and per query a target, a reference and a group that holds the target alone or both."""
    images, queries = draw(st.integers(2, 12)), draw(st.integers(1, 6))
    values = st.sampled_from([-1.0, -0.0, 0.0, 0.25, 1.0, float("-inf")])
    scores = draw(st.lists(st.lists(values, min_size=images, max_size=images), min_size=queries, max_size=queries))
    orders = [draw(st.permutations(range(images))) for _ in range(queries)]
    sizes = [draw(st.integers(1, images)) for _ in range(queries)]
    targets = [order[0] for order in orders]
    groups = [draw(st.permutations(order[:size])) for order, size in zip(orders, sizes, strict=True)]
    dtype = draw(st.sampled_from(DTYPES))
    return torch.tensor(scores, dtype=dtype), targets, [order[-1] for order in orders], groups


def named(ranking):
    scores, targets, references, groups = ranking
    names = [f"img-{(7 * column + 3) % 13}" for column in range(scores.shape[1])]
    return {
        "scores": scores,
        "gallery_names": names,
        "reference_names": [names[column] for column in references],
        "target_names": [names[column] for column in targets],
        "group_members": [[names[column] for column in group] for group in groups],
    }


@examples
@given(ranking=rankings(), at_once=st.sampled_from([1, 20, 2**18]))
def test_target_ranks_are_those_of_a_sort(ranking, at_once):
    scores, targets, references, _ = ranking
    columns = range(scores.shape[1])
    rows = list(zip(scores.tolist(), targets, references, strict=True))
    with mock.patch("sprc.benchmarks.ranking.SCORES_AT_ONCE", at_once):
        kept = target_ranks(scores, torch.tensor(targets))
        excluded = target_ranks(scores, torch.tensor(targets), torch.tensor(references))
    assert kept.tolist() == [slow_rank(row, target, columns) for row, target, _ in rows]
    assert excluded.tolist() == [slow_rank(row, target, set(columns) - {without}) for row, target, without in rows]


@examples
@given(ranking=rankings())
def test_group_ranks_are_those_of_a_sort(ranking):
    scores, targets, _, groups = ranking
    filled = torch.full((len(groups), scores.shape[1]), -1)
    for query, group in enumerate(groups):
        filled[query, : len(group)] = torch.tensor(group)
    expected = [
        slow_rank(row, target, group) for row, target, group in zip(scores.tolist(), targets, groups, strict=True)
    ]
    assert group_ranks(scores, torch.tensor(targets), filled).tolist() == expected


def test_equal_scores_rank_by_gallery_index():
    scores = torch.zeros(3, 5)
    targets = torch.tensor([0, 2, 4])
    assert target_ranks(scores, targets).tolist() == [0, 2, 4]
    assert target_ranks(scores, targets, torch.tensor([4, 1, 1])).tolist() == [0, 1, 3]


@pytest.mark.parametrize("column", range(4))
def test_nan_anywhere_in_the_scores_is_an_error(column):
    scores = torch.arange(8.0).reshape(2, 4)
    scores[1, column] = torch.nan
    target = torch.tensor([1, 1])
    names = list("abcd")
    calls = [
        lambda: target_ranks(scores, target),
        lambda: group_ranks(scores, target, torch.tensor([[1], [1]])),
        lambda: cirr_metrics(scores, names, ["a", "a"], ["b", "b"], [["a", "b"]] * 2),
        lambda: fashioniq_recalls(scores, names, ["b", "b"]),
        lambda: top_names(scores, names, 2, ["a", "a"]),
        lambda: top_group_names(scores, names, [["a", "b"]] * 2, ["a", "a"]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"NaN in the scores, in 1 of 2 rows: \[1\]"):
            call()


def test_recall_counts_the_ranks_below_k():
    ranks = torch.tensor([0, 1, 1, 9])
    assert [recall_at(ranks, k) for k in (1, 2, 9, 10)] == [25.0, 75.0, 75.0, 100.0]
    with pytest.raises(InputError, match="no query"):
        recall_at(ranks[:0], 1)


# --- CIRR -----------------------------------------------------------------------------------------------------------

CIRR_KEYS = [
    "group_recall_at1", "group_recall_at2", "group_recall_at3", "recall_at1", "recall_at5", "recall_at10",
    "recall_at50", "mean(R@5+R_s@1)", "arithmetic_mean", "harmonic_mean", "geometric_mean",
]  # fmt: skip


def test_reference_counts_on_the_real_cirr_annotations(shared):
    recorded = json.loads((shared / "reference" / "cirr_val_metrics.json").read_text())["val"]
    captions, names = load_annotations(shared / "cirr")
    scores = recipe_scores(captions, names)
    assert hashlib.sha256(scores.tobytes()).hexdigest() == recorded["sim_sha256"]
    metrics = cirr_metrics(torch.from_numpy(scores), **metric_names(captions, names))
    assert {key: metrics[key] for key in recorded["counts"]} == {
        key: 100 * count / recorded["Q"] for key, count in recorded["counts"].items()
    }
    values = np.array(list(recorded["metrics"].values()))
    assert metrics["mean(R@5+R_s@1)"] == pytest.approx((values[4] + values[0]) / 2, rel=1e-6)
    assert metrics["arithmetic_mean"] == pytest.approx(values.mean(), rel=1e-6)
    assert metrics["harmonic_mean"] == pytest.approx(1 / (1 / values).mean(), rel=1e-6)
    assert metrics["geometric_mean"] == pytest.approx(np.exp(np.log(values).mean()), rel=1e-6)


@examples
@given(ranking=rankings())
def test_cirr_metrics_are_those_of_a_sort_by_name(ranking):
    arguments = named(ranking)
    metrics = cirr_metrics(**arguments)
    assert list(metrics) == CIRR_KEYS
    assert all(type(value) is float for value in metrics.values())
    assert metrics == pytest.approx(naive_cirr_metrics(**arguments), rel=1e-12)


def test_group_may_list_the_reference_and_repeat_a_member():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    arguments = (scores, list("abcd"), ["a"], ["d"])
    metrics = [cirr_metrics(*arguments, [group]) for group in ("abd", "bd", "bbd")]
    assert metrics[0]["group_recall_at2"] == 100.0
    assert metrics[0] == metrics[1] == metrics[2]


def test_one_query_with_its_target_as_the_only_other_image():
    metrics = cirr_metrics(torch.tensor([[1.0, 0.0]]), ["a", "b"], ["a"], ["b"], [["a", "b"]])
    assert metrics == pytest.approx(dict.fromkeys(CIRR_KEYS, 100.0))


def test_a_recall_of_zero_makes_two_means_zero():
    names = [f"img-{column}" for column in range(8)]
    metrics = cirr_metrics(-torch.arange(8.0)[None], names, ["img-0"], ["img-7"], [names])
    assert metrics["group_recall_at1"] == metrics["recall_at5"] == 0.0
    assert metrics["arithmetic_mean"] == pytest.approx(200 / 7)
    assert metrics["harmonic_mean"] == metrics["geometric_mean"] == 0.0
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target_names": ["b", "x"]}, "query 1: target 'x' is not among the 4 gallery images"),
        ({"reference_names": ["x", "a"]}, "query 0: reference 'x' is not among"),
        ({"group_members": ["abcd", "abcx"]}, "query 1: group member 'x' is not among"),
        ({"gallery_names": ["a", "b", "c", "b"]}, "gallery image 'b' occurs twice, at 1 and 3"),
        ({"group_members": ["abcd", "abd"]}, "query 1: target 'c' is not among the members of its group"),
        ({"reference_names": ["b", "a"]}, "query 0: target 'b' is not among the members of its group"),
    ],
)
def test_cirr_names_that_do_not_fit_are_input_errors(changed, message):
    arguments = {
        "scores": torch.zeros(2, 4),
        "gallery_names": list("abcd"),
        "reference_names": ["a", "a"],
        "target_names": ["b", "c"],
        "group_members": ["abcd", "abcd"],
    }
    cirr_metrics(**arguments)
    with pytest.raises(InputError, match=message):
        cirr_metrics(**(arguments | changed))


def test_no_query_is_an_input_error():
    with pytest.raises(InputError, match="no query"):
        cirr_metrics(torch.zeros(0, 2), ["a", "b"], [], [], [])


def test_sizes_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"shape \(2, 3\) do not fit 4 gallery names"):
        cirr_metrics(torch.zeros(2, 3), list("abcd"), ["a"] * 2, ["b"] * 2, ["abc"] * 2)
    with pytest.raises(ValueError, match=r"lists of \[2, 1, 2\] entries"):
        cirr_metrics(torch.zeros(2, 4), list("abcd"), ["a"] * 2, ["b"], ["abc"] * 2)


# --- FashionIQ ------------------------------------------------------------------------------------------------------


def test_fashioniq_recalls_keep_the_reference():
    names = [f"img-{column}" for column in range(60)]
    scores = -torch.arange(60.0).repeat(4, 1)
    targets = ["img-9", "img-10", "img-49", "img-50"]
    assert fashioniq_recalls(scores, names, targets) == {"recall_at10": 25.0, "recall_at50": 75.0}


def test_fashioniq_with_one_query_and_one_image():
    assert fashioniq_recalls(torch.zeros(1, 1), ["a"], ["a"]) == {"recall_at10": 100.0, "recall_at50": 100.0}


def test_fashioniq_name_outside_the_gallery_is_an_input_error():
    with pytest.raises(InputError, match="query 0: target 'x' is not among the 1 gallery images"):
        fashioniq_recalls(torch.zeros(1, 1), ["a"], ["x"])


# --- names for a submission -----------------------------------------------------------------------------------------


@examples
@given(ranking=rankings(), k=st.integers(1, 14), at_once=st.sampled_from([1, 2**18]))
def test_top_names_are_those_of_a_sort(ranking, k, at_once):
    arguments = named(ranking)
    names, references = arguments["gallery_names"], arguments["reference_names"]
    expected = []
    for row, reference in zip(arguments["scores"].tolist(), references, strict=True):
        ordered = sorted(range(len(names)), key=lambda column, row=row: (-row[column], column))
        expected.append([names[column] for column in ordered if names[column] != reference][:k])
    with mock.patch("sprc.benchmarks.ranking.SCORES_AT_ONCE", at_once):
        assert top_names(arguments["scores"], names, k, references) == expected


@examples
@given(ranking=rankings(), k=st.integers(1, 5))
def test_top_group_names_are_those_of_a_sort(ranking, k):
    arguments = named(ranking)
    names, references, groups = (arguments[key] for key in ("gallery_names", "reference_names", "group_members"))
    expected = []
    for row, reference, group in zip(arguments["scores"].tolist(), references, groups, strict=True):
        ordered = sorted(range(len(names)), key=lambda column, row=row: (-row[column], column))
        expected.append([names[column] for column in ordered if names[column] in set(group) - {reference}][:k])
    assert top_group_names(arguments["scores"], names, groups, references, k) == expected


def test_fewer_candidates_than_asked_for_give_what_there_is():
    scores = torch.tensor([[0.1, 0.9, 0.5]])
    assert top_names(scores, list("abc"), 50, ["b"]) == [["c", "a"]]
    assert top_group_names(scores, list("abc"), ["bc"], ["b"]) == [["c"]]
    assert top_group_names(scores, list("abc"), ["b"], ["b"]) == [[]]


def test_unknown_names_of_a_submission_are_input_errors():
    scores = torch.zeros(1, 3)
    with pytest.raises(InputError, match="query 0: reference 'x' is not among"):
        top_names(scores, list("abc"), 2, ["x"])
    with pytest.raises(InputError, match="query 0: group member 'x' is not among"):
        top_group_names(scores, list("abc"), ["ax"], ["a"])


@pytest.mark.parametrize("device", DEVICES)
def test_scores_of_any_device_give_the_same_metrics_and_names(device):
    names = [f"img-{column}" for column in range(12)]
    scores = torch.randint(0, 4, (5, 12), generator=torch.Generator().manual_seed(0)).float()
    arguments = {"gallery_names": names, "reference_names": names[:5], "target_names": names[6:11]}
    moved = scores.to(device)
    assert cirr_metrics(moved, **arguments, group_members=[names] * 5) == pytest.approx(
        naive_cirr_metrics(scores, **arguments, group_members=[names] * 5)
    )
    assert top_names(moved, names, 4, names[:5]) == top_group_names(moved, names, [names] * 5, names[:5], 4)
