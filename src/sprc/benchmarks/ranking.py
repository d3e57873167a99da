"""Ranking and recall: pure functions of scores and names, without a model or a data set.

A score matrix is (Q, N): queries by gallery images. A higher score ranks first; equal scores rank by gallery index, so
every result is deterministic. Names become gallery columns once, and everything after that counts integers.
"""

import statistics
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sprc.core.errors import InputError

# Ranks are counted for so many queries at a time that one comparison covers about this many scores: it stays in cache.
SCORES_AT_ONCE = 2**18


@torch.no_grad()
def gallery_scores(
    query_features: Tensor, target_features: Tensor, memory_mib: float = 256, output_device: str | torch.device = "cpu"
) -> Tensor:
    """Score every gallery image for every query: the largest cosine over the image's target tokens (SPRC).

    Computed on the device of `query_features` in float32, whatever autocast says; the gallery may lie elsewhere and is
    moved a chunk at a time. The global float32 matmul precision (TF32) is left as it is set.

    Args:
        query_features: (Q, D), L2-normalised, any floating type.
        target_features: (N, T, D), L2-normalised, any floating type, on any device.
        memory_mib: bound on the temporaries in MiB, without inputs and result; one image with one query always fits.
        output_device: where the result lies.

    Returns:
        (Q, N) float32.

    Raises:
        InputError: `memory_mib` is not above 0.
        InputError: NaN in the features or in the scores.
    """
    _require_no_nan(query_features, "query features")
    _require_no_nan(target_features, "target features")
    query_chunk, image_chunk = _chunk_sizes(target_features, memory_mib)
    scores = torch.empty(len(query_features), len(target_features), dtype=torch.float32, device=output_device)
    with torch.autocast(query_features.device.type, enabled=False):
        for first in range(0, len(target_features), image_chunk):
            images = slice(first, first + image_chunk)
            _fill_scores(scores[:, images], query_features, target_features[images], query_chunk)
    _require_no_nan(scores, "scores")
    return scores


def _chunk_sizes(target_features: Tensor, memory_mib: float) -> tuple[int, int]:
    """(queries, images) at a time: half of the memory holds the chunk of the gallery, half the queries and products."""
    if not memory_mib > 0:
        raise InputError(f"the memory bound of the ranking must be above 0 MiB, but it is {memory_mib}")
    half = memory_mib * 2**20 / 2
    total, tokens, dim = target_features.shape
    # A chunk may be there twice: as stored, when it is moved, and in float32.
    images = int(half // (tokens * dim * (4 + target_features.element_size())))
    images = max(1, min(total, images))
    # Per query: its features as stored and in float32, a product per token, the best of them, and its transposed copy.
    queries = int(half // (4 * (2 * dim + images * (tokens + 2))))
    return max(1, queries), images


def _fill_scores(scores: Tensor, query_features: Tensor, target_features: Tensor, query_chunk: int) -> None:
    """Write the scores of one chunk of the gallery (n, T, D) into `scores` (Q, n)."""
    images, tokens, _ = target_features.shape
    token_rows = target_features.flatten(0, 1).to(query_features.device).float()  # (n, T, D) -> (n T, D)
    for first in range(0, len(query_features), query_chunk):
        queries = slice(first, first + query_chunk)
        cosines = token_rows @ query_features[queries].float().T  # (n T, q)
        scores[queries] = cosines.view(images, tokens, -1).amax(dim=1).T  # (n, T, q) -> (n, q) -> (q, n)
        # The next product is made before the name is bound anew: without this line two of them would be held.
        del cosines


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
    _require_no_nan(scores, "scores")
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
    """Rank of every query's target among the images of its group alone, 0 for the best.

    Args:
        scores: (Q, N), any floating type.
        target_columns: (Q,) int64.
        group_columns: (Q, M) int64, each image at most once; -1 fills up a smaller group.

    Returns:
        (Q,) int64.

    Raises:
        InputError: NaN in the scores.
    """
    _require_no_nan(scores, "scores")
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
    """Percentage of the ranks (Q,) below `k`. Raises InputError where there are no queries."""
    if len(ranks) == 0:
        raise InputError("there is no query to compute a recall from: the captions file of this split is empty")
    return 100 * int((ranks < k).sum()) / len(ranks)


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
    _require_sizes(scores, gallery_names, reference_names, target_names, group_members)
    column_of = _gallery_columns(gallery_names)
    targets = _name_columns(target_names, "target", column_of).to(scores.device)
    references = _name_columns(reference_names, "reference", column_of).to(scores.device)
    groups = _group_columns(group_members, reference_names, column_of).to(scores.device)
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


def fashioniq_recalls(scores: Tensor, gallery_names: Sequence[str], target_names: Sequence[str]) -> dict[str, float]:
    """The FashionIQ metrics of one garment type in percent; the reference image takes part in the ranking.

    Args:
        scores: (Q, N).
        gallery_names: N names, column by column.
        target_names: Q names.

    Raises:
        InputError: a name that is not in the gallery, a gallery name that occurs twice, or no query at all.
        ValueError: sizes that do not fit, or NaN in the scores (`InputError`).
    """
    _require_sizes(scores, gallery_names, target_names)
    targets = _name_columns(target_names, "target", _gallery_columns(gallery_names)).to(scores.device)
    ranks = target_ranks(scores, targets)
    return {f"recall_at{k}": recall_at(ranks, k) for k in (10, 50)}


def top_names(scores: Tensor, gallery_names: Sequence[str], k: int, reference_names: Sequence[str]) -> list[list[str]]:
    """The `k` best names of every query, best first, without its reference; fewer where the gallery is smaller.

    Args:
        scores: (Q, N).
        gallery_names: N names, column by column.
        k: how many names a query gets.
        reference_names: Q names.

    Raises:
        InputError: a reference that is not in the gallery, or a gallery name that occurs twice.
        ValueError: sizes that do not fit, or NaN in the scores (`InputError`).
    """
    _require_sizes(scores, gallery_names, reference_names)
    _require_no_nan(scores, "scores")
    references = _name_columns(reference_names, "reference", _gallery_columns(gallery_names)).tolist()
    best = _best_columns(scores, k + 1)  # one more than asked for, since the reference may be among them
    return [
        [gallery_names[column] for column in columns if column != reference][:k]
        for columns, reference in zip(best, references, strict=True)
    ]


def _best_columns(scores: Tensor, k: int) -> Iterator[list[int]]:
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
    """The `k` best names of every query among the other members of its group; fewer where the group is smaller.

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
    _require_sizes(scores, gallery_names, group_members, reference_names)
    _require_no_nan(scores, "scores")
    groups = _group_columns(group_members, reference_names, _gallery_columns(gallery_names))
    group_scores = scores.gather(1, groups.clamp(min=0).to(scores.device)).tolist()
    best = []
    for row, columns in zip(group_scores, groups.tolist(), strict=True):
        members = [(-score, column) for score, column in zip(row, columns, strict=True) if column >= 0]
        best.append([gallery_names[column] for _, column in sorted(members)[:k]])
    return best


def _gallery_columns(gallery_names: Sequence[str]) -> dict[str, int]:
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


def _name_columns(names: Sequence[str], role: str, column_of: dict[str, int]) -> Tensor:
    """(Q,) int64: the column of every query's image."""
    return torch.tensor([_column(name, role, q, column_of) for q, name in enumerate(names)], dtype=torch.long)


def _group_columns(
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


def _require_targets_in_groups(targets: Tensor, groups: Tensor, target_names: Sequence[str]) -> None:
    strangers = (~(groups == targets[:, None]).any(dim=1)).nonzero()[:, 0].tolist()
    if strangers:
        raise InputError(
            f"query {strangers[0]}: target {target_names[strangers[0]]!r} is not among the members of its group other "
            "than the reference; correct the entry in the captions file"
        )


def _require_sizes(scores: Tensor, gallery_names: Sequence[str], *per_query: Sequence) -> None:
    lengths = [len(entries) for entries in per_query]
    if any(tuple(scores.shape) != (length, len(gallery_names)) for length in lengths):
        raise ValueError(
            f"scores of shape {tuple(scores.shape)} do not fit {len(gallery_names)} gallery names and lists of "
            f"{lengths} entries, one per query"
        )


def _require_no_nan(rows: Tensor, what: str) -> None:
    """Raise where a row holds NaN: every comparison with it is false, so it would pass as the best rank."""
    if rows.numel() == 0:
        return
    # A maximum keeps NaN and needs no temporary of the size of its input, as `isnan` does.
    broken = rows.flatten(1).amax(dim=1).isnan().nonzero()[:, 0].tolist()
    if broken:
        more = f" and {len(broken) - 8} more" if len(broken) > 8 else ""
        raise InputError(
            f"NaN in the {what}, in {len(broken)} of {len(rows)} rows: {broken[:8]}{more}. The model gives no numbers"
            " for them: use --precision fp32, or an earlier checkpoint"
        )
