"""The engine of a Milvus server, or of a milvus-lite file: the tokens are its rows, and it groups them by image."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import torch
from tqdm import tqdm

from sprc.core.errors import InputError
from sprc.index.exact import ExactEngine, rounding
from sprc.index.faiss_engine import proven
from sprc.index.gallery import Gallery

logger = logging.getLogger(__name__)

GROUPS_AT_MOST = 16384  # Milvus gives no more results
BATCH_BYTES = 2**23  # of vectors in an insertion; a server takes 64 MiB by default
HALF_AN_ULP_OF_FLOAT16 = 2.0**-11
SECONDS = 10.0  # until a server must answer


def _import_pymilvus() -> ModuleType:
    """Raises InputError that says how to install it."""
    try:
        import pymilvus
    except ImportError as error:
        raise InputError(f'`engine` milvus needs pymilvus ({error}): pip install "sprc-regions[milvus]"') from error
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)  # it logs what it raises, with a traceback
    return pymilvus


class MilvusEngine:
    """Proposes the images whose tokens Milvus finds, and more until they hold the k best provably.

    `uri` is that of a server (http://host:19530) or the name of a milvus-lite file, which ends in .db. The rows stand
    in the collection `collection`_<part of the gallery's digest>; `write_rows` puts them there. A server holds float16,
    milvus-lite float32. What a list of `GROUPS_AT_MOST` images does not prove is left to `ExactEngine`.

    Raises InputError if pymilvus is not installed or `uri` leads to nothing that answers.
    """

    def __init__(self, gallery: Gallery, uri: str, collection: str = "sprc", memory_mib: float = 256):
        self.gallery, self.uri, self.exact = gallery, uri, ExactEngine(gallery, memory_mib)
        self.collection = f"{collection}_{gallery.digest[:32]}"
        self.type = np.float32 if uri.endswith(".db") else np.float16
        self.milvus = _import_pymilvus()
        with self._answers():
            self.client = self._connect()
            self.ready = self._is_whole()

    def write_rows(self) -> None:
        """Write the gallery's tokens to the collection, unless it holds them all already."""
        if self.ready:
            return
        with self._answers():
            if self.client.has_collection(self.collection):  # what a kill has left
                self.client.drop_collection(self.collection)
            self._create()
            self._insert()
            self.client.flush(self.collection)
            self.ready = self._is_whole()

    def candidates(self, queries: np.ndarray, k: int) -> list[np.ndarray]:
        """As `Engine.candidates`. Raises InputError if the rows are not there, or the server fails."""
        if not self.ready:
            raise InputError(
                f"`uri` {self.uri} does not hold the rows of the index {self.gallery.path}: write them first"
            )
        with self._answers():
            self.client.load_collection(self.collection)
            found = [self._of_query(query, k) for query in queries]
        return [
            self.exact.candidates(query[None], k)[0] if places is None else places
            for query, places in zip(queries, found, strict=True)
        ]

    def _connect(self):
        return self.milvus.MilvusClient(self.uri, timeout=SECONDS)

    def close(self) -> None:
        self.client.close()

    def _of_query(self, query: np.ndarray, k: int) -> np.ndarray | None:
        margin = rounding(len(query), torch.device("cpu"))
        if self.type == np.float16:
            margin += HALF_AN_ULP_OF_FLOAT16  # the query is rounded to the type of the rows
        return proven(lambda count: self._nearest(query, count), k, 2 * margin, len(self.gallery), GROUPS_AT_MOST)

    def _nearest(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(cosines, places) of so many images, best first."""
        found = self.client.search(
            self.collection,
            data=[query.astype(self.type)],
            anns_field="vector",
            limit=count,
            group_by_field="image",
            output_fields=["image"],
            timeout=6 * SECONDS,
        )[0]
        scores = np.array([hit["distance"] for hit in found], np.float32)
        return scores, np.array([hit["entity"]["image"] for hit in found], np.int64)

    def _is_whole(self) -> bool:
        """Whether the collection holds a row for every token."""
        if not self.client.has_collection(self.collection):
            return False
        rows = int(self.client.get_collection_stats(self.collection)["row_count"])
        return rows == len(self.gallery) * self.gallery.maker.tokens

    def _create(self) -> None:
        kinds, client = self.milvus.DataType, self.milvus.MilvusClient
        schema = client.create_schema(auto_id=False, description=f"tokens of the gallery {self.gallery.digest}")
        schema.add_field("id", kinds.INT64, is_primary=True)
        schema.add_field("image", kinds.INT64)
        schema.add_field("token", kinds.INT64)
        vector = kinds.FLOAT16_VECTOR if self.type == np.float16 else kinds.FLOAT_VECTOR
        schema.add_field("vector", vector, dim=self.gallery.maker.width)
        search_by = client.prepare_index_params()
        search_by.add_index("vector", index_type="FLAT", metric_type="IP")
        self.client.create_collection(self.collection, schema=schema, index_params=search_by)

    def _insert(self) -> None:
        maker, total = self.gallery.maker, len(self.gallery)
        at_once = max(1, BATCH_BYTES // (2 * maker.row_bytes))  # images
        with tqdm(total=total, desc="Milvus", unit="image", dynamic_ncols=True) as bar:
            for start in range(0, total, at_once):
                images = self.gallery.tokens(start, start + at_once).astype(self.type)
                self.client.insert(self.collection, _rows(images, start), timeout=6 * SECONDS)
                bar.update(len(images))

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """One line for whatever the server or its library says."""
        try:
            yield
        except self.milvus.MilvusException as error:
            words = " ".join(str(error.message).split())
            raise InputError(f"`uri` {self.uri} fails ({words}): check it and its server") from error


def _rows(images: np.ndarray, start: int) -> list[dict]:
    """The rows of images (n, Q, E), the first of which has the place `start`."""
    tokens = images.shape[1]
    return [
        {"id": (start + number) * tokens + token, "image": start + number, "token": token, "vector": vector}
        for number, image in enumerate(images)
        for token, vector in enumerate(image)
    ]
