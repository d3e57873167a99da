"""Queries of the model's own on the photographs of an index: what an approximate search is measured with."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sprc.retrieval.retriever import Retriever

COUNT = 400
# What users ask for: a colour, a size, a place, a number, something more, something less, another view.
SENTENCES = (
    "the same in red",
    "make it smaller",
    "the same in front of a dark background",
    "show two of them",
    "add a person beside it",
    "remove what is on the left",
    "the same from the side",
    "the same outdoors in the sun",
)


def probe_queries(retriever: "Retriever", count: int = COUNT) -> np.ndarray:
    """(B, E) float32: queries with references spread evenly over the gallery, each with one of `SENTENCES`.

    Raises InputError if a photograph has gone.
    """
    gallery = retriever.gallery
    chosen = np.unique(np.linspace(0, len(gallery) - 1, min(count, len(gallery))).round().astype(int))
    references = [retriever.photos / gallery.names[position] for position in chosen]
    return retriever.encode_queries(references, [SENTENCES[i % len(SENTENCES)] for i in range(len(references))])
