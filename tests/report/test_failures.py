"""Which queries come onto a sheet, and in which order."""

import random

import pytest

from sprc.core.errors import InputError
from sprc.report.failures import (
    KINDS,
    SheetOptions,
    largest_differences,
    validation_sheets,
)
from sprc.report.rankings import Found, RankedQuery


def ranked_query(number: int, rank: int, score: float = 0.0) -> RankedQuery:
    return RankedQuery("val", None, number, rank, Found("t", score), ())


@pytest.fixture
def ranked():
    """40 queries, 15 of them with the target among the first five."""
    rng = random.Random(1)
    ranks = [rng.randrange(5) for _ in range(15)] + [rng.randrange(5, 90) for _ in range(25)]
    rng.shuffle(ranks)
    return [ranked_query(number, rank, rng.random()) for number, rank in enumerate(ranks)]


def test_best_and_worst_are_the_ends_of_the_order(ranked):
    options = SheetOptions(queries=6)
    by_rank = sorted(query.rank for query in ranked)
    assert [query.rank for query in KINDS["best"][0](ranked, options)] == by_rank[:6]
    assert [query.rank for query in KINDS["worst"][0](ranked, options)] == by_rank[::-1][:6]
    alike = [ranked_query(0, 2, 0.1), ranked_query(1, 2, 0.9), ranked_query(2, 2, 0.5)]
    assert [query.number for query in KINDS["best"][0](alike, options)] == [1, 2, 0]
    assert [query.number for query in KINDS["worst"][0](alike, options)] == [0, 2, 1]


@pytest.mark.parametrize("kind", ["random", "mixed"])
def test_the_seed_draws(ranked, kind):
    def numbers(seed):
        return [query.number for query in KINDS[kind][0](ranked, SheetOptions(queries=8, seed=seed))]

    assert numbers(1) == numbers(1) != numbers(2)
    assert len(set(numbers(1))) == 8
    if kind == "random":
        assert numbers(1) == sorted(numbers(1))


@pytest.mark.parametrize(
    ("queries", "right", "few"),
    [(8, 15, 4), (7, 15, 3), (8, 2, 6), (1, 15, 0), (40, 15, 25), (99, 15, 25), (20, 0, 20)],
)
def test_mixed_has_half_of_each_kind_as_far_as_there_are(ranked, queries, right, few):
    wrong = [query for query in ranked if query.rank >= 5]
    given = [query for query in ranked if query.rank < 5][:right] + wrong
    chosen = KINDS["mixed"][0](given, SheetOptions(queries=queries))
    is_wrong = [query.rank >= 5 for query in chosen]
    assert is_wrong == sorted(is_wrong)  # the right ones stand first
    assert (len(chosen), sum(is_wrong)) == (min(queries, len(given)), few)
    assert len({query.number for query in chosen}) == len(chosen)


def test_fewer_wrong_ones_than_half_leave_room_for_right_ones(ranked):
    given = [query for query in ranked if query.rank < 5] + [ranked_query(99, 50)]
    chosen = KINDS["mixed"][0](given, SheetOptions(queries=8))
    assert [query.number for query in chosen if query.rank >= 5] == [99]
    assert len(chosen) == 8


def test_the_largest_gains_and_losses_come_first():
    pairs = [
        (ranked_query(n, a), ranked_query(n, b)) for n, (a, b) in enumerate([(0, 9), (3, 3), (5, 0), (0, 50), (9, 8)])
    ]
    assert [pair[0].number for pair in largest_differences(pairs, 5)] == [3, 0, 2, 4]
    assert [pair[0].number for pair in largest_differences(pairs, 1)] == [3, 2]


def test_an_unknown_kind_is_refused_before_anything_is_read():
    with pytest.raises(InputError, match="`kind` 'fine' is unknown: use one of best, worst, random, mixed"):
        validation_sheets(None, ["best", "fine"], SheetOptions())
