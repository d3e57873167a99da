"""Search in a gallery: an engine proposes images, and one function scores them, the same for every engine."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sprc.core.errors import InputError
from sprc.index.gallery import Gallery

AT_ONCE = 512  # images


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
    than k images, or a query holds NaN.
    """
    if not 1 <= k <= len(gallery):
        raise InputError(f"`top_k` is {k}: the index {gallery.path} holds {len(gallery)} images, give 1 to that many")
    if not np.isfinite(queries).all():
        raise InputError("the model gives no numbers for a query: use `precision` fp32, or an earlier checkpoint")
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    proposed = engine.candidates(queries, k)
    return [best_of(gallery, query, places)[:k] for query, places in zip(queries, proposed, strict=True)]


def best_of(gallery: Gallery, query: np.ndarray, positions: np.ndarray) -> list[Match]:
    """All of these images, best first, for a query (E,).

    Cosines are computed in float64, in which products of these numbers are exact, and rounded to float32: so a score
    depends on no engine, chunk or number of threads, and the same photograph in two places has one score.
    """
    positions = np.sort(positions)
    parts = [_token_scores(gallery, query, positions[i : i + AT_ONCE]) for i in range(0, len(positions), AT_ONCE)]
    scores, tokens = (np.concatenate(values) for values in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")
    return [Match(int(positions[i]), float(scores[i]), int(tokens[i])) for i in order]


def _token_scores(gallery: Gallery, query: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scores, winning tokens), (n,) each."""
    cosines = gallery.tokens_of(positions).astype(np.float64) @ query.astype(np.float64)  # (n, Q, E) x (E,) -> (n, Q)
    return cosines.max(axis=1).astype(np.float32), cosines.argmax(axis=1)
