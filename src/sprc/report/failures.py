"""Sheets of a validation: queries that a checkpoint answers well or badly, and those that one wins over another."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from sprc.core.errors import InputError
from sprc.report.pictures import Picture, Role
from sprc.report.rankings import OneCheckpoint, RankedQuery, rank_validation, summary_lines
from sprc.report.sheets import ResultLine, SheetRow, contact_sheet
from sprc.report.token_maps import heat_maps
from sprc.retrieval.evaluate_checkpoint import preprocess_of
from sprc.retrieval.options import EvaluationConfig

HEAT_IN_WORDS = (
    "Heat: where the token that gives an image its score looks; the brightest place is that image's own maximum."
)
SIDES = ("first", "second")
Pair = tuple[RankedQuery, RankedQuery]


@dataclass(frozen=True)
class SheetOptions:
    """How many queries a sheet has, how many results each, the seed of what is drawn by lot, and heat maps or not."""

    queries: int = 8
    top_k: int = 5
    seed: int = 0
    heat_maps: bool = False


def best(ranked: Sequence[RankedQuery], options: SheetOptions) -> list[RankedQuery]:
    """Those whose target ranks first, the highest scores first."""
    return sorted(ranked, key=lambda query: (query.rank, -query.target.score))[: options.queries]


def worst(ranked: Sequence[RankedQuery], options: SheetOptions) -> list[RankedQuery]:
    """Those whose target ranks last, the last first."""
    return sorted(ranked, key=lambda query: (-query.rank, query.target.score))[: options.queries]


def drawn(ranked: Sequence[RankedQuery], options: SheetOptions) -> list[RankedQuery]:
    """Queries drawn by the seed, in the order of the validation."""
    chosen = random.Random(options.seed).sample(range(len(ranked)), min(options.queries, len(ranked)))
    return [ranked[number] for number in sorted(chosen)]


def mixed(ranked: Sequence[RankedQuery], options: SheetOptions) -> list[RankedQuery]:
    """Half of them with the target among the results, then half without, drawn by the seed.

    If there are too few of the one kind, there are more of the other.
    """
    shuffled = random.Random(options.seed).sample(list(ranked), len(ranked))
    right = [query for query in shuffled if query.rank < options.top_k]
    wrong = [query for query in shuffled if query.rank >= options.top_k]
    few = min(len(wrong), max(options.queries // 2, options.queries - len(right)))
    return right[: options.queries - few] + wrong[:few]


Pick = Callable[[Sequence[RankedQuery], SheetOptions], list[RankedQuery]]
# What a sheet shows -> how its queries are picked, and that in words.
KINDS: dict[str, tuple[Pick, str]] = {
    "best": (best, "answered best"),
    "worst": (worst, "answered worst"),
    "random": (drawn, "drawn by lot"),
    "mixed": (mixed, "with the target among the first {top_k}, and without"),
}


def validation_sheet(config: EvaluationConfig, kind: str = "mixed", options: SheetOptions | None = None) -> Image.Image:
    """One sheet of a checkpoint's validation: that of `validation_sheets`, without the summary."""
    return validation_sheets(config, [kind], options or SheetOptions())[0][kind]


def validation_sheets(
    config: EvaluationConfig, kinds: Sequence[str], options: SheetOptions
) -> tuple[dict[str, Image.Image], list[str]]:
    """Sheets of a checkpoint's validation by kind, one of `KINDS`, and the summary in lines.

    Raises InputError for another kind, and as `validate` for a file that is missing or wrong, and if memory runs out.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise InputError(f"`kind` {unknown[0]!r} is unknown: use one of {', '.join(KINDS)}")
    checkpoint = OneCheckpoint()
    ranked = _rank(checkpoint, config, options)
    summary, sheets = summary_lines(ranked), {}
    for kind in kinds:
        pick, in_words = KINDS[kind]
        chosen = _with_maps(checkpoint, config, pick(ranked, options), options)
        title = f"{_validation(config)}: {len(chosen)} of {len(ranked)} queries, {in_words}"
        notes = [f"model: {config.model_path}", *summary, *_heat_note(options)]
        sheets[kind] = contact_sheet(list(map(_row, chosen)), title.format(top_k=options.top_k), notes)
    return sheets, summary


def comparison_sheets(
    config: EvaluationConfig, against: EvaluationConfig, options: SheetOptions
) -> tuple[dict[str, Image.Image], list[str]]:
    """Sheets of the queries whose target ranks higher with the first checkpoint than with the second, `won`, and of
    those where it ranks lower, `lost`; the summary of both in lines. A sheet without queries is left out.

    The largest differences come first. One model at a time is in memory. Raises InputError as `validation_sheets`.
    """
    checkpoint = OneCheckpoint()
    first, second = (_rank(checkpoint, one, options) for one in (config, against))
    chosen = largest_differences(list(zip(first, second, strict=True)), options.queries)
    # The second checkpoint is still in memory.
    seconds = _with_maps(checkpoint, against, [pair[1] for pair in chosen], options)
    firsts = _with_maps(checkpoint, config, [pair[0] for pair in chosen], options)
    pairs = list(zip(firsts, seconds, strict=True))
    summary = [f"{side}: {line}" for side, of in zip(SIDES, (first, second), strict=True) for line in summary_lines(of)]
    models = [f"{side} model: {one.model_path}" for side, one in zip(SIDES, (config, against), strict=True)]
    notes = [*models, *summary, *_heat_note(options)]
    sheets = {}
    for kind in ("won", "lost"):
        rows = [_compared(pair) for pair in pairs if _gain(pair) * (1 if kind == "won" else -1) > 0]
        if rows:
            title = f"{_validation(config)}: {len(rows)} queries that the first model has {kind}"
            sheets[kind] = contact_sheet(rows, title, notes)
    return sheets, summary


def _rank(checkpoint: OneCheckpoint, config: EvaluationConfig, options: SheetOptions) -> list[RankedQuery]:
    with checkpoint.open(config) as (validation, evaluator):
        return rank_validation(validation, evaluator, options.top_k)


def _with_maps(
    checkpoint: OneCheckpoint, config: EvaluationConfig, queries: list[RankedQuery], options: SheetOptions
) -> list[RankedQuery]:
    """The queries with heat maps of their targets and results, if these are asked for."""
    if not options.heat_maps or not queries:
        return queries
    preprocess = preprocess_of(config)
    with checkpoint.open(config) as (_, evaluator):
        names = [[found.name for found in (query.target, *query.best)] for query in queries]
        return [
            replace(query, maps=heat_maps(evaluator, preprocess, query.task, query.number, of_query))
            for query, of_query in zip(queries, names, strict=True)
        ]


def _gain(pair: Pair) -> int:
    """By how many ranks the first checkpoint is better."""
    return pair[1].rank - pair[0].rank


def largest_differences(pairs: list[Pair], count: int) -> list[Pair]:
    """Up to `count` pairs that the first checkpoint wins, and as many that it loses, the largest differences first."""
    won = sorted((pair for pair in pairs if _gain(pair) > 0), key=_gain, reverse=True)
    lost = sorted((pair for pair in pairs if _gain(pair) < 0), key=_gain)
    return won[:count] + lost[:count]


def _row(query: RankedQuery) -> SheetRow:
    """A query with what one checkpoint has found."""
    note = f"{query.task_name}, rank {query.rank + 1} of {query.ranked}"
    return _sheet_row(query, (_line(query),), note)


def _compared(pair: Pair) -> SheetRow:
    """A query with what both checkpoints have found; the target's heat map is the first one's."""
    headings = [f"{side}: rank {query.rank + 1} of {query.ranked}" for side, query in zip(SIDES, pair, strict=True)]
    lines = tuple(_line(query, heading) for query, heading in zip(pair, headings, strict=True))
    return _sheet_row(pair[0], lines, f"{pair[0].task_name}, rank {pair[0].rank + 1} against {pair[1].rank + 1}")


def _sheet_row(query: RankedQuery, lines: tuple[ResultLine, ...], note: str) -> SheetRow:
    gallery, name = query.task.gallery, query.target.name
    reference = Picture(gallery.path_of(query.reference), query.reference, "reference", role=Role.REFERENCE)
    score, heat = f"{query.target.score:.3f}", query.maps.get(name)
    target = Picture(gallery.path_of(name), name, "target", score, Role.TARGET, heat)
    return SheetRow(reference, query.sentence, lines, target, note)


def _line(query: RankedQuery, heading: str = "") -> ResultLine:
    pictures = []
    for place, found in enumerate(query.best, start=1):
        role = Role.TARGET if found.name == query.target.name else Role.OTHER
        path, heat = query.task.gallery.path_of(found.name), query.maps.get(found.name)
        pictures.append(Picture(path, found.name, str(place), f"{found.score:.3f}", role, heat))
    return ResultLine(tuple(pictures), heading)


def _validation(config: EvaluationConfig) -> str:
    return f"{config.benchmark.name} validation"


def _heat_note(options: SheetOptions) -> list[str]:
    return [HEAT_IN_WORDS] if options.heat_maps else []
