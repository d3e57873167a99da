"""Ranking and recall: pure functions of scores and names, which every benchmark makes its metrics of.

A score matrix is (Q, N): queries by gallery images. A higher score ranks first; equal scores rank by gallery index, so
every result is deterministic. Names become gallery columns once, and everything after that counts integers.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sprc.core.errors import InputError

# Ranks are counted for so many queries at a time that one comparison covers about this many scores: it stays in cache.
SCORES_AT_ONCE = 2**18


def target_ranks(scores: Tensor, target_columns: Tensor, excluded_columns: Tensor | None = None) -> Tensor:
    """Rank of every query's target, 0 for the best: how many gallery images come before it.

    Args:
        scores: (Q, N), any floating type.
        target_columns: (Q,) int64.
        excluded_columns: (Q,) int64, one image per query that takes no part (the CIRR reference); not the target.

    Returns:
        (Q,) int64.

    Raises:
        InputError: NaN in the scores.
    """
    require_no_nan(scores, "scores")
    targets = target_columns[:, None]
    target_scores = scores.gather(1, targets)  # (Q, 1)
    columns = torch.arange(scores.shape[1], device=scores.device)
    chunk = _rows_at_once(scores)
    parts = zip(scores.split(chunk), target_scores.split(chunk), targets.split(chunk), strict=True)
    ranks = torch.cat([_comes_before(rows, columns, best, target).sum(dim=1) for rows, best, target in parts])
    if excluded_columns is not None:
        excluded = excluded_columns[:, None]
        ranks -= _comes_before(scores.gather(1, excluded), excluded, target_scores, targets)[:, 0].long()
    return ranks


def group_ranks(scores: Tensor, target_columns: Tensor, group_columns: Tensor) -> Tensor:
    """Rank of every query's target among the images of its group alone: as `target_ranks`.

    `group_columns` is (Q, M) int64, each image at most once; -1 fills up a smaller group.
    """
    require_no_nan(scores, "scores")
    targets = target_columns[:, None]
    group_scores = scores.gather(1, group_columns.clamp(min=0))  # (Q, M)
    before = _comes_before(group_scores, group_columns, scores.gather(1, targets), targets)
    return (before & (group_columns >= 0)).sum(dim=1)


def _rows_at_once(scores: Tensor) -> int:
    return max(1, SCORES_AT_ONCE // max(1, scores.shape[1]))


def _comes_before(scores: Tensor, columns: Tensor, target_scores: Tensor, target_columns: Tensor) -> Tensor:
    """The one rule of order: a greater score, or the same score and a smaller gallery index."""
    return (scores > target_scores) | ((scores == target_scores) & (columns < target_columns))


def recall_at(ranks: Tensor, k: int) -> float:
    """Percentage of the ranks (Q,) below `k`. Raises InputError if there is no query."""
    if len(ranks) == 0:
        raise InputError("there is no query to compute a recall from: the captions file of this split is empty")
    return 100 * int((ranks < k).sum()) / len(ranks)


def top_names(scores: Tensor, gallery_names: Sequence[str], k: int, reference_names: Sequence[str]) -> list[list[str]]:
    """The `k` best names of every query, best first, without its reference; fewer if the gallery is smaller.

    Args:
        scores: (Q, N).
        gallery_names: N names, column by column.
        k: how many names a query gets.
        reference_names: Q names.

    Raises:
        InputError: a reference that is not in the gallery, or a gallery name that occurs twice.
        ValueError: sizes that do not fit, or NaN in the scores (`InputError`).
    """
    require_sizes(scores, gallery_names, reference_names)
    require_no_nan(scores, "scores")
    references = name_columns(reference_names, "reference", gallery_columns(gallery_names))
    return [[gallery_names[column] for column in columns] for columns in best_columns(scores, k, references)]


def best_columns(scores: Tensor, k: int, excluded_columns: Tensor | None = None) -> list[list[int]]:
    """The `k` best columns of every row of scores (Q, N), best first, in the order of `target_ranks`; fewer if N is.

    `excluded_columns` (Q,) int64 is one column of each row that takes no part. The scores hold no NaN.
    """
    if excluded_columns is None:
        return [*_sorted_columns(scores, k)]
    best = _sorted_columns(scores, k + 1)  # one more than asked for, since the excluded one may be among them
    return [
        [column for column in columns if column != excluded][:k]
        for columns, excluded in zip(best, excluded_columns.tolist(), strict=True)
    ]


def _sorted_columns(scores: Tensor, k: int) -> Iterator[list[int]]:
    """The `k` best columns of every row. A stable sort keeps equal scores in gallery order, `topk` does not."""
    for rows in scores.split(_rows_at_once(scores)):
        yield from rows.sort(dim=1, descending=True, stable=True).indices[:, :k].tolist()


def top_group_names(
    scores: Tensor,
    gallery_names: Sequence[str],
    group_members: Sequence[Sequence[str]],
    reference_names: Sequence[str],
    k: int = 3,
) -> list[list[str]]:
    """The `k` best names of every query among the other members of its group; fewer if the group is smaller.

    Args:
        scores: (Q, N).
        gallery_names: N names, column by column.
        group_members: Q groups, with or without the reference itself.
        reference_names: Q names.
        k: how many names a query gets.

    Raises:
        InputError: a name that is not in the gallery, or a gallery name that occurs twice.
        ValueError: sizes that do not fit, or NaN in the scores (`InputError`).
    """
    require_sizes(scores, gallery_names, group_members, reference_names)
    require_no_nan(scores, "scores")
    groups = group_columns(group_members, reference_names, gallery_columns(gallery_names))
    group_scores = scores.gather(1, groups.clamp(min=0).to(scores.device)).tolist()
    best = []
    for row, columns in zip(group_scores, groups.tolist(), strict=True):
        members = [(-score, column) for score, column in zip(row, columns, strict=True) if column >= 0]
        best.append([gallery_names[column] for _, column in sorted(members)[:k]])
    return best


def gallery_columns(gallery_names: Sequence[str]) -> dict[str, int]:
    """Name -> column of the score matrix."""
    column_of = {name: column for column, name in enumerate(gallery_names)}
    for column, name in enumerate(gallery_names):
        if column_of[name] != column:
            raise InputError(
                f"gallery image {name!r} occurs twice, at {column} and {column_of[name]}: "
                "list every image once in the image split"
            )
    return column_of


def _column(name: str, role: str, query: int, column_of: dict[str, int]) -> int:
    if name not in column_of:
        raise InputError(
            f"query {query}: {role} {name!r} is not among the {len(column_of)} gallery images; "
            "the captions file and the image split must be of the same split"
        )
    return column_of[name]


def name_columns(names: Sequence[str], role: str, column_of: dict[str, int]) -> Tensor:
    """(Q,) int64: the column of every query's image."""
    return torch.tensor([_column(name, role, q, column_of) for q, name in enumerate(names)], dtype=torch.long)


def group_columns(
    group_members: Sequence[Sequence[str]], reference_names: Sequence[str], column_of: dict[str, int]
) -> Tensor:
    """(Q, M) int64: the columns of every query's group without its reference, each once, filled up with -1."""
    groups = [
        [_column(name, "group member", query, column_of) for name in dict.fromkeys(members) if name != reference]
        for query, (members, reference) in enumerate(zip(group_members, reference_names, strict=True))
    ]
    width = max(map(len, groups), default=0)
    filled = [group + [-1] * (width - len(group)) for group in groups]
    return torch.tensor(filled, dtype=torch.long).reshape(len(groups), width)


def require_sizes(scores: Tensor, gallery_names: Sequence[str], *per_query: Sequence) -> None:
    lengths = [len(entries) for entries in per_query]
    if any(tuple(scores.shape) != (length, len(gallery_names)) for length in lengths):
        raise ValueError(
            f"scores of shape {tuple(scores.shape)} do not fit {len(gallery_names)} gallery names and lists of "
            f"{lengths} entries, one per query"
        )


def require_no_nan(rows: Tensor, what: str) -> None:
    """Raise if a row holds NaN: every comparison with it is false, so it would pass as the best rank."""
    if rows.numel() == 0:
        return
    # A maximum keeps NaN and needs no temporary of the size of its input, as `isnan` does.
    broken = rows.flatten(1).amax(dim=1).isnan().nonzero()[:, 0].tolist()
    if broken:
        more = f" and {len(broken) - 8} more" if len(broken) > 8 else ""
        raise InputError(
            f"NaN in the {what}, in {len(broken)} of {len(rows)} rows: {broken[:8]}{more}. The model gives no numbers"
            " for them: use `precision` fp32, or an earlier checkpoint"
        )
