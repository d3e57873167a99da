"""Scores of queries against a gallery: SPRC's, the largest cosine over an image's target tokens."""

import torch
from torch import Tensor

from sprc.benchmarks.ranking import require_no_nan
from sprc.core.errors import InputError


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
    require_no_nan(query_features, "query features")
    require_no_nan(target_features, "target features")
    query_chunk, image_chunk = chunk_sizes(target_features.shape, target_features.element_size(), memory_mib)
    scores = torch.empty(len(query_features), len(target_features), dtype=torch.float32, device=output_device)
    with torch.autocast(query_features.device.type, enabled=False):
        for first in range(0, len(target_features), image_chunk):
            images = slice(first, first + image_chunk)
            fill_scores(scores[:, images], query_features, target_features[images], query_chunk)
    require_no_nan(scores, "scores")
    return scores


def chunk_sizes(shape: tuple[int, ...], element_size: int, memory_mib: float) -> tuple[int, int]:
    """(queries, images) at a time, for a gallery of `shape` (N, T, D) with so many bytes a number.

    Half of the memory holds the chunk of the gallery, half the queries and products. Raises InputError if `memory_mib`
    is not above 0.
    """
    if not memory_mib > 0:
        raise InputError(f"the memory bound of the ranking must be above 0 MiB, but it is {memory_mib}")
    half = memory_mib * 2**20 / 2
    total, tokens, dim = shape
    # A chunk may be there twice: as stored, when it is moved, and in float32.
    images = int(half // (tokens * dim * (4 + element_size)))
    images = max(1, min(total, images))
    # Per query: its features as stored and in float32, a product per token, the best of them, and its transposed copy.
    queries = int(half // (4 * (2 * dim + images * (tokens + 2))))
    return max(1, queries), images


def fill_scores(scores: Tensor, query_features: Tensor, target_features: Tensor, query_chunk: int) -> None:
    """Write the scores of one chunk of the gallery (n, T, D) into `scores` (Q, n)."""
    images, tokens, _ = target_features.shape
    token_rows = target_features.flatten(0, 1).to(query_features.device).float()  # (n, T, D) -> (n T, D)
    for first in range(0, len(query_features), query_chunk):
        queries = slice(first, first + query_chunk)
        cosines = token_rows @ query_features[queries].float().T  # (n T, q)
        scores[queries] = cosines.view(images, tokens, -1).amax(dim=1).T  # (n, T, q) -> (n, q) -> (q, n)
        # The next product is made before the name is bound again: without this line two of them would be held.
        del cosines
