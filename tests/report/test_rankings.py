"""Ranks are those of the metrics, for a benchmark that ranks references and for one that does not."""

import statistics

import pytest
import torch

from sprc.benchmarks import cirr, fashioniq
from sprc.core.errors import InputError
from sprc.data.image_set import ImageSet
from sprc.data.triplets import Query
from sprc.report import rankings
from sprc.report.rankings import OneCheckpoint, rank_task, summary_lines

NAMES = [f"img{n}" for n in range(12)]


def make_task(benchmark, root):
    """Every image is the reference of two queries; every query's group is the next five images."""
    queries = []
    for number in range(24):
        reference, *others = (NAMES[(number + step) % 12] for step in range(6))
        caption = "make it red" if benchmark is cirr else ["is red", "is long"]
        queries.append(Query(reference, caption, (others[number % 5],), tuple(others)))
    gallery = ImageSet("x", root, {name: f"{name}.png" for name in NAMES}, lambda image: image)
    return benchmark.validation_task(gallery, queries)


@pytest.mark.parametrize("benchmark", [cirr, fashioniq])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_and_results_are_those_of_a_sort_and_of_the_metrics(benchmark, seed, tmp_path):
    task = make_task(benchmark, tmp_path)
    scores = torch.randint(0, 6, (24, 12), generator=torch.Generator().manual_seed(seed)).float() / 8  # many ties
    ranked = rank_task("val", task, scores, 4)
    for number, query in enumerate(ranked):
        candidates = [n for n in range(12) if benchmark is fashioniq or NAMES[n] != query.reference]
        slow = sorted(candidates, key=lambda n: (-scores[number, n].item(), n))
        assert query.ranked == len(slow)
        assert NAMES[slow[query.rank]] == query.target.name == task.queries[number].target
        assert [(f.name, f.score) for f in query.best] == [(NAMES[n], scores[number, n].item()) for n in slow[:4]]
        assert query.sentence == task.sentences[number]
    metrics = task.metrics(scores)
    assert metrics["recall_at10"] == 100 * sum(query.rank < 10 for query in ranked) / 24
    (line,) = summary_lines(ranked)
    median = statistics.median(query.rank + 1 for query in ranked)
    assert line.startswith(f"val: 24 queries, median rank {median:g}, recall@1 ")
    assert line.endswith(f"recall@10 {metrics['recall_at10']:.2f}")


def test_tasks_are_summed_up_by_themselves(tmp_path):
    task, scores = make_task(fashioniq, tmp_path), torch.eye(12).repeat(2, 1)
    lines = summary_lines([*rank_task("dress", task, scores, 1), *rank_task("shirt", task, -scores, 1)])
    assert [line.split(":")[0] for line in lines] == ["dress", "shirt"]


def test_nan_is_refused(tmp_path):
    task, scores = make_task(cirr, tmp_path), torch.zeros(24, 12)
    scores[3, 5] = torch.nan
    with pytest.raises(InputError, match="NaN in the scores"):
        rank_task("val", task, scores, 3)


def test_one_model_is_in_memory_at_a_time(monkeypatch):
    class Model:
        alive = 0

        def __init__(self, *arguments):
            Model.alive += 1

        def __del__(self):
            Model.alive -= 1

    class Config:
        batch_size = 1

    monkeypatch.setattr(rankings, "load_evaluator", Model)
    monkeypatch.setattr(rankings, "open_validation", lambda config: type("Shapes", (), {"galleries": []}))
    checkpoint, first, second = OneCheckpoint(), Config(), Config()
    seen = []
    for config in (first, first, second, first):
        with checkpoint.open(config) as (_, evaluator):
            seen.append(id(evaluator))
        del evaluator
        assert Model.alive == 1
    assert seen[0] == seen[1]
    checkpoint.close()
    assert Model.alive == 0
