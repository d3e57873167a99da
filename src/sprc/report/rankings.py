"""Where a checkpoint ranks the target of every query of a validation, and what it finds in its place."""

import gc
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from sprc.benchmarks.benchmark import RetrievalTask, Validation
from sprc.benchmarks.ranking import best_columns, gallery_columns, name_columns, recall_at, target_ranks
from sprc.core.machine_faults import explained
from sprc.report.heat_maps import HeatMap
from sprc.retrieval.evaluate_checkpoint import load_evaluator, memory_fix, open_validation
from sprc.retrieval.evaluation import Evaluator
from sprc.retrieval.options import EvaluationConfig

RECALLS = (1, 5, 10)


@dataclass(frozen=True)
class Found:
    """A gallery image, and its score."""

    name: str
    score: float


@dataclass(frozen=True)
class RankedQuery:
    """Query `number` of a task: the rank of its target, 0 for the best, of `ranked` images, and the best of these.

    The rule is that of the task's metrics. `maps` are heat maps of images by name, where they were asked for.
    """

    task_name: str
    task: RetrievalTask
    number: int
    rank: int
    target: Found
    best: tuple[Found, ...]
    maps: Mapping[str, HeatMap] = field(default_factory=dict)

    @property
    def reference(self) -> str:
        return self.task.queries[self.number].reference

    @property
    def sentence(self) -> str:
        return self.task.sentences[self.number]

    @property
    def ranked(self) -> int:
        return len(self.task.gallery) - (not self.task.ranks_reference)


@dataclass
class OneCheckpoint:
    """Evaluators of checkpoints, of which the last one alone is in memory."""

    _opened: tuple[EvaluationConfig, Validation, Evaluator] | None = field(default=None, init=False)

    @contextmanager
    def open(self, config: EvaluationConfig) -> Iterator[tuple[Validation, Evaluator]]:
        """The validation and the evaluator of a configuration, whose errors are `validate`'s."""
        with explained(memory_fix(config)):
            if self._opened is None or self._opened[0] is not config:
                self.close()
                validation = open_validation(config)
                self._opened = config, validation, load_evaluator(config, validation.galleries)
            yield self._opened[1:]

    def close(self) -> None:
        """Give the memory back."""
        self._opened = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def rank_validation(validation: Validation, evaluator: Evaluator, top_k: int) -> list[RankedQuery]:
    """All queries of all tasks in their order, each with its `top_k` best images."""
    tasks = validation.tasks.items()
    return [*chain(*(rank_task(name, task, evaluator.score(task), top_k) for name, task in tasks))]


def rank_task(name: str, task: RetrievalTask, scores: Tensor, top_k: int) -> list[RankedQuery]:
    """The queries of one task, of their scores (Q, N). Raises InputError for NaN in them."""
    names, column_of = task.gallery.names, gallery_columns(task.gallery.names)
    targets = name_columns([query.target for query in task.queries], "target", column_of)
    references = None if task.ranks_reference else name_columns(task.reference_names, "reference", column_of)
    ranks = target_ranks(scores, targets, references).tolist()
    rows = zip(scores, targets.tolist(), ranks, best_columns(scores, top_k, references), strict=True)
    ranked = []
    for number, (row, target, rank, best) in enumerate(rows):
        found = [Found(names[column], float(row[column])) for column in (target, *best)]
        ranked.append(RankedQuery(name, task, number, rank, found[0], tuple(found[1:])))
    return ranked


def summary_lines(queries: list[RankedQuery]) -> list[str]:
    """For each task its size, the median rank (1 is best) and recalls in percent."""
    lines = []
    for name in dict.fromkeys(query.task_name for query in queries):
        ranks = [query.rank for query in queries if query.task_name == name]
        recalls = ", ".join(f"recall@{k} {recall_at(torch.tensor(ranks), k):.2f}" for k in RECALLS)
        lines.append(f"{name}: {len(ranks)} queries, median rank {statistics.median(ranks) + 1:g}, {recalls}")
    return lines
