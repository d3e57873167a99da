"""The exact engine of faiss: faster than the one of torch for a few queries, and without memory of its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import torch

from sprc.core.errors import InputError
from sprc.index.exact import ExactEngine, rounding
from sprc.index.gallery import Gallery

TOKENS_AN_IMAGE = 4  # that are looked for first
TOKENS_AT_MOST = 2**16
MANY_QUERIES = 16


def import_faiss() -> ModuleType:
    """Raises InputError that says how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise InputError(f'`engine` needs faiss ({error}): pip install "sprc-regions[index]"') from error
    return faiss


class FaissEngine:
    """Every token of the index, compared by faiss.

    The rows of `tokens.bin` are the codes that faiss's float16 quantiser would make, so they are searched where they
    are mapped, and nothing is copied. Each thread has a part of them: faiss itself gives one query to one thread. From
    `MANY_QUERIES` on the product of matrices in `ExactEngine` is faster, and it also takes queries that would need a
    list of more than `TOKENS_AT_MOST`. Raises InputError if faiss is not installed.
    """

    def __init__(self, gallery: Gallery, memory_mib: float = 256):
        self.gallery, self.exact = gallery, ExactEngine(gallery, memory_mib)
        flat = gallery.stored.reshape(-1, gallery.maker.width)  # (R Q, E)
        threads = import_faiss().omp_get_max_threads()
        self.starts = np.linspace(0, len(flat), min(threads, len(flat)), endpoint=False).astype(np.int64)
        self.parts = [_index_of(part) for part in np.split(flat, self.starts[1:])]
        self.pool = ThreadPoolExecutor(len(self.parts))
        self.position_of_row = np.full(len(gallery.stored), -1)
        self.position_of_row[gallery.rows] = np.arange(len(gallery))

    def candidates(self, queries: np.ndarray, k: int) -> list[np.ndarray]:
        """As `Engine.candidates`."""
        if len(queries) >= MANY_QUERIES:
            return self.exact.candidates(queries, k)
        return [self._of_query(query, k) for query in queries]

    def _of_query(self, query: np.ndarray, k: int) -> np.ndarray:
        margin, images = 2 * rounding(len(query), torch.device("cpu")), len(self.gallery)
        places = proven(lambda count: self._nearest(query, count), k, margin, images, TOKENS_AT_MOST)
        return self.exact.candidates(query[None], k)[0] if places is None else places

    def _nearest(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(cosines, places) of the `count` best tokens, best first; -1 stands for a row that no gallery names."""
        found = self.pool.map(lambda part: part.search(query[None], min(count, part.ntotal)), self.parts)
        lists = [(cosines[0], tokens[0] + start) for (cosines, tokens), start in zip(found, self.starts, strict=True)]
        cosines, tokens = (np.concatenate(values) for values in zip(*lists, strict=True))
        order = np.argsort(-cosines)[:count]
        return cosines[order], self.position_of_row[tokens[order] // self.gallery.maker.tokens]


def proven(
    nearest: Callable[[int], tuple[np.ndarray, np.ndarray]], k: int, margin: float, images: int, at_most: int
) -> np.ndarray | None:
    """The places of a list that holds, provably, the k best images: the list is doubled until it does.

    `nearest` gives the scores and places of the so many best entries, best first; -1 stands for no image. The list is
    proven if it holds all `images`, or if its last score is below that of the k-th image by more than `margin`. None if
    a list of `at_most` entries is not.
    """
    count = TOKENS_AN_IMAGE * k
    while count <= at_most:
        scores, places = nearest(count)
        known = places >= 0
        found, first = np.unique(places[known], return_index=True)
        if len(found) == images:
            return found
        if len(found) >= k and scores[-1] < scores[known][np.sort(first)[k - 1]] - margin:
            return found
        count *= 2
    return None


def _index_of(tokens: np.ndarray):
    """A faiss index that looks at these tokens (n, E), float16, where they are; they must outlive it."""
    faiss = import_faiss()
    index = faiss.IndexScalarQuantizer(tokens.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    codes, place = index.codes, faiss.swig_ptr(tokens.view(np.uint8).reshape(-1))
    codes.is_owned, codes.view_data, codes.view_size = False, place, tokens.nbytes
    codes.c_ptr, codes.c_size = place, tokens.nbytes
    index.ntotal = len(tokens)
    return index
