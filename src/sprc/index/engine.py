"""Search in a gallery: an engine proposes images, and one function scores them, the same for every engine."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from sprc.core.errors import InputError
from sprc.index.exact import rounding
from sprc.index.gallery import Gallery

AT_ONCE = 512  # images
TOKENS_AT_ONCE = 4096


class Engine(Protocol):
    """What finds images that may be among the best.

    An exact engine proposes at least every image whose score is as high as the k-th highest.
    """

    def candidates(self, queries: np.ndarray, k: int) -> list[np.ndarray]:
        """(B, E) float32, L2-normalised -> for each query the places in the gallery, at least k of them, once each."""


@dataclass(frozen=True)
class Match:
    """An image that a query found: its place in the gallery, its score, and the number of the token that scored."""

    position: int
    score: float
    token: int


def search(gallery: Gallery, engine: Engine, queries: np.ndarray, k: int) -> list[list[Match]]:
    """The k best images of every query (B, E), best first; equal scores in the order of the gallery.

    A score is SPRC's, the largest cosine over the image's target tokens. Raises InputError if the gallery has fewer
    than k images, a query holds NaN, or the tokens of a result are not those that were written.
    """
    if not 1 <= k <= len(gallery):
        raise InputError(f"`top_k` is {k}: the index {gallery.path} holds {len(gallery)} images, give 1 to that many")
    if not np.isfinite(queries).all():
        raise InputError("the model gives no numbers for a query: use `precision` fp32, or an earlier checkpoint")
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    proposed = engine.candidates(queries, k)
    found = [best_of(gallery, query, places, k) for query, places in zip(queries, proposed, strict=True)]
    for position in {match.position for row in found for match in row}:
        gallery.require_whole(position)
    return found


def best_of(gallery: Gallery, query: np.ndarray, positions: np.ndarray, k: int | None = None) -> list[Match]:
    """The k best of these images, or all of them, best first, for a query (E,).

    Cosines are summed in float64, in which products of these numbers are exact, and rounded to float32: so a score
    depends on no engine, chunk or number of threads, and the same photograph in two places has one score. Float32 says
    before, for which tokens that is worth doing: those that rounding may keep from the best. Raises InputError for
    damaged tokens that are no numbers.
    """
    positions = np.sort(positions)
    rough = _rough_cosines(gallery, query, positions)  # (n, Q)
    if np.isnan(rough).any():
        raise gallery.damage()
    images, tokens = _near_the_best(rough, k, 2 * rounding(len(query), torch.device("cpu")))
    cosines = _exact_cosines(gallery, query, positions[images], tokens)
    order = np.lexsort((tokens, -cosines, images))  # of each image: the winner first
    winners = order[np.unique(images[order], return_index=True)[1]]
    scores = cosines[winners].astype(np.float32)
    order = np.argsort(-scores, kind="stable")[:k]
    best = winners[order]
    columns = positions[images[best]], scores[order], tokens[best]
    return [Match(*match) for match in zip(*(column.tolist() for column in columns), strict=True)]


def _rough_cosines(gallery: Gallery, query: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(n, Q) float32, each within `rounding` of the cosine."""
    rough = np.empty((len(positions), gallery.maker.tokens), np.float32)
    for start in range(0, len(positions), AT_ONCE):
        tokens = torch.from_numpy(gallery.tokens_of(positions[start : start + AT_ONCE]))  # (n, Q, E) float16
        rough[start : start + AT_ONCE] = (tokens.float() @ torch.from_numpy(query)).numpy()
    return rough


def _near_the_best(rough: np.ndarray, k: int | None, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """(images, tokens), sorted: each image that may be among the k best, with its tokens that may be its best."""
    scores = rough.max(axis=1)
    kth = len(scores) if k is None else min(k, len(scores))
    lowest = np.partition(scores, -kth)[-kth] - margin
    near = (rough >= scores[:, None] - margin) & (scores >= lowest)[:, None]
    images, tokens = near.nonzero()
    return images, tokens


def _exact_cosines(gallery: Gallery, query: np.ndarray, positions: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """(m,) float64, each summed in the same order, whatever stands beside it."""
    rows, cosines = gallery.rows[positions], np.empty(len(tokens))
    for start in range(0, len(tokens), TOKENS_AT_ONCE):
        part = slice(start, start + TOKENS_AT_ONCE)
        products = gallery.stored[rows[part], tokens[part]] * query.astype(np.float64)  # (m, E)
        cosines[part] = products.sum(axis=1)
    return cosines
