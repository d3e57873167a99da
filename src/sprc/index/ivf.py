"""The approximate engine: lists of similar tokens (IVF) of which a query looks at a few, for galleries beyond 10^5.

    data-<number>/ivf/
        trained.faiss  centres of the lists, and the tables of the codes
        ranges.npy     (L, 3) int64: how many tokens a list holds, has room for, and where in lists.bin it begins
        lists.bin      of each list the tokens' codes, 2 bits a dimension, and their numbers, int64; it is mapped
        ivf.json       the gallery's digest, how many lists a query looks at, and the recall that was measured

A query compares the codes of some lists (product quantisation, scanned 32 at a time), then the tokens themselves of the
best, and `search` scores the images that these are of by all their tokens. So scores are exact, and only an image may
be missing.
"""

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch

from sprc.core.errors import InputError
from sprc.core.files import write_atomically
from sprc.core.reading import read_json, readable
from sprc.index.exact import rounding
from sprc.index.faiss_engine import import_faiss
from sprc.index.gallery import Gallery

logger = logging.getLogger(__name__)

NAME, HEAD, TRAINED, RANGES, LISTS = "ivf", "ivf.json", "trained.faiss", "ranges.npy", "lists.bin"
ID_BYTES = 8
KINDS: dict = {float: (int, float), int: int, str: str}
RECALL_AT = 50  # images, for which `probes` is chosen
TOKENS_AN_IMAGE = 16  # that each thread takes from the lists for an image that is wanted


@dataclass(frozen=True)
class IvfHead:
    """What an IVF says of itself: the gallery's digest, lists, lists that a query looks at, and the recall it has.

    `recall` is the share of the exact `RECALL_AT` best images that were found, for `queries` queries that had no part
    in choosing `probes`. `sha256` is of the small files.
    """

    digest: str
    lists: int
    probes: int
    recall: float
    queries: int
    sha256: str

    def __str__(self) -> str:
        found = f"recall@{RECALL_AT} {self.recall:.4f}, measured on {self.queries} queries"
        return f"{self.probes} of {self.lists} lists a query, {found}"


def read_ivf(gallery: Gallery) -> IvfHead | None:
    """What the IVF of this gallery says of itself; None if there is none, or only one of an earlier gallery.

    Raises InputError if it is damaged.
    """
    path = gallery.data_folder / NAME / HEAD
    if not path.exists():
        return None
    head = read_json(path, dict, _fix(gallery))
    kinds = {entry.name: KINDS[entry.type] for entry in fields(IvfHead)}
    if set(head) != set(kinds) or not all(isinstance(head[name], kind) for name, kind in kinds.items()):
        raise InputError(f"{path} lacks what an {HEAD} holds: {_fix(gallery)}")
    found = IvfHead(**head)
    if found.digest != gallery.digest:
        logger.warning(f"{path.parent} is of an earlier state of the index, and is not used: build it again")
        return None
    return found


def write_head(folder: Path, head: IvfHead) -> None:
    write_atomically(folder / HEAD, json.dumps(asdict(head), indent=2))


def _fix(gallery: Gallery) -> str:
    return f"remove {gallery.data_folder / NAME} and build it again"


class IvfEngine:
    """Proposes the images of the best tokens in the `probes` nearest lists; more lists if more than 50 are wanted.

    Raises InputError if faiss is not installed, or the gallery has no IVF, a stale or a damaged one.
    """

    def __init__(self, gallery: Gallery):
        head = read_ivf(gallery)
        if head is None:
            raise InputError(f"the index {gallery.path} has no IVF as it is now: build one, or give another `engine`")
        folder = gallery.data_folder / NAME
        with readable(folder, _fix(gallery)):
            if print_of(folder) != head.sha256:
                raise InputError(f"{folder} is damaged: {_fix(gallery)}")
        self._open(gallery, open_lists(folder), head.probes)

    @classmethod
    def of_lists(cls, gallery: Gallery, index, probes: int) -> "IvfEngine":
        """An engine of lists that are open already."""
        engine = cls.__new__(cls)
        engine._open(gallery, index, probes)
        return engine

    def _open(self, gallery: Gallery, index, probes: int) -> None:
        self.gallery, self.index, self.probes, self.tokens_an_image = gallery, index, probes, TOKENS_AN_IMAGE
        self.threads = import_faiss().omp_get_max_threads()  # faiss gives all lists of a query to one
        self.pool = ThreadPoolExecutor(self.threads)
        self.margin = 2 * rounding(gallery.maker.width, torch.device("cpu"))

    def candidates(self, queries: np.ndarray, k: int) -> list[np.ndarray]:
        """As `Engine.candidates`, but an image may be missing."""
        return [self._of_query(query[None], k) for query in queries]

    def _of_query(self, query: np.ndarray, k: int) -> np.ndarray:
        probes, count = -(-self.probes * max(k, RECALL_AT) // RECALL_AT), self.tokens_an_image * k
        while True:
            probes, count = min(probes, self.index.nlist), min(count, self.index.ntotal)
            tokens = self._tokens(query, probes, count)
            places = self._best_images(query[0], tokens, k)
            if len(places) >= k:
                return places
            probes, count = 2 * probes, 2 * count

    def _tokens(self, query: np.ndarray, probes: int, count: int) -> np.ndarray:
        """The numbers of the best tokens by their codes: at most `count` of each thread's part of the lists."""
        cosines, lists = self.index.quantizer.search(query, probes)

        def of_part(start: int) -> np.ndarray:
            return self._tokens_in(query, lists[:, start :: self.threads], cosines[:, start :: self.threads], count)

        tokens = np.concatenate(list(self.pool.map(of_part, range(min(self.threads, probes)))))
        if len(tokens) and tokens.max() >= len(self.gallery) * self.gallery.maker.tokens:
            raise InputError(f"{self.gallery.data_folder / NAME / LISTS} is damaged: {_fix(self.gallery)}")
        return tokens[tokens >= 0]  # -1 where the lists have no more

    def _tokens_in(self, query: np.ndarray, lists: np.ndarray, cosines: np.ndarray, count: int) -> np.ndarray:
        """(count,) the numbers of the best tokens of some lists, whose centres have these cosines."""
        faiss = import_faiss()
        lists, cosines = np.ascontiguousarray(lists), np.ascontiguousarray(cosines)
        scores, tokens = np.empty(count, np.float32), np.empty(count, np.int64)
        places = [faiss.swig_ptr(values) for values in (lists, cosines, scores, tokens)]
        chosen = faiss.SearchParametersIVF(nprobe=lists.shape[1])
        self.index.search_preassigned_c(1, faiss.swig_ptr(query), count, *places, False, chosen)
        return tokens

    def _best_images(self, query: np.ndarray, tokens: np.ndarray, k: int) -> np.ndarray:
        """The places of the images of the best of these tokens: half as many again as are wanted, and equal ones."""
        places, numbers = np.divmod(np.sort(tokens), self.gallery.maker.tokens)
        stored = torch.from_numpy(self.gallery.stored[self.gallery.rows[places], numbers])  # (n, E) float16
        cosines = (stored.float() @ torch.from_numpy(query)).numpy()
        images, first = np.unique(places, return_index=True)
        if not len(images):
            return images
        scores = np.maximum.reduceat(cosines, first)
        enough = min(k + max(10, k // 2), len(images))
        return images[scores >= np.partition(scores, -enough)[-enough] - self.margin]


def print_of(folder: Path) -> str:
    """SHA-256 of the small files, which faiss trusts, and of the size of the large one."""
    content = hashlib.sha256(str((folder / LISTS).stat().st_size).encode())
    for name in (TRAINED, RANGES):
        content.update((folder / name).read_bytes())
    return content.hexdigest()


def list_bytes(ranges: np.ndarray, code_size: int) -> int:
    """The size of `lists.bin`."""
    _, room, offset = ranges[-1].tolist()
    return offset + room * (code_size + ID_BYTES)


def open_lists(folder: Path):
    """The faiss index in a folder, its lists mapped."""
    faiss = import_faiss()
    index = faiss.deserialize_index(np.fromfile(folder / TRAINED, np.uint8))
    ranges = np.load(folder / RANGES, allow_pickle=False)
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(folder / LISTS))
    lists.read_only, lists.totsize = True, list_bytes(ranges, index.code_size)
    lists.prefetch_nthread = 0  # it starts threads for each query
    faiss.memcpy(lists.lists.data(), faiss.swig_ptr(ranges), ranges.nbytes)
    lists.do_mmap()
    index.replace_invlists(lists, True)
    lists.this.disown()
    index.ntotal = int(ranges[:, 0].sum())
    return index
