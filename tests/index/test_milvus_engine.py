"""Milvus finds what a plain search finds; its rows are those of one gallery."""

import sys

import numpy as np
import pytest
from indexes import found_by, plain_search, random_gallery

from sprc.core.errors import InputError
from sprc.index.milvus_engine import MilvusEngine


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed (extra `milvus`)")
    return str(tmp_path_factory.mktemp("milvus") / "tokens.db")


@pytest.mark.parametrize(("seed", "images", "copies"), [(0, 1, False), (1, 60, False), (2, 60, True), (3, 17, True)])
def test_milvus_finds_what_a_plain_search_finds(tmp_path, uri, seed, images, copies):
    gallery, tokens, queries, k = random_gallery(tmp_path, seed, images, copies)
    engine = MilvusEngine(gallery, uri)
    engine.write_rows()
    assert found_by(gallery, engine, queries, k) == [plain_search(tokens, q, k) for q in queries]
    engine.close()


def test_rows_are_written_once_and_again_if_they_are_not_whole(tmp_path, uri, monkeypatch):
    gallery, tokens, queries, _ = random_gallery(tmp_path, 4, 20, copies=False)
    engine = MilvusEngine(gallery, uri)
    assert not engine.ready
    with pytest.raises(InputError, match=r"does not hold the rows of the index .*: write them first"):
        engine.candidates(queries, 3)
    engine.write_rows()
    again = MilvusEngine(gallery, uri)
    assert again.ready
    monkeypatch.setattr(MilvusEngine, "_insert", None)
    again.write_rows()  # nothing to do
    monkeypatch.undo()
    again.client.delete(again.collection, ids=[0])
    again.client.flush(again.collection)
    third = MilvusEngine(gallery, uri)
    assert not third.ready
    third.write_rows()
    assert found_by(gallery, third, queries, 3) == [plain_search(tokens, q, 3) for q in queries]


def test_galleries_do_not_share_their_rows(tmp_path, uri):
    engines = [
        MilvusEngine(random_gallery(tmp_path / str(seed), seed, 20, copies=False)[0], uri, "mine") for seed in (5, 6)
    ]
    engines[0].write_rows()
    assert engines[0].ready and not MilvusEngine(engines[1].gallery, uri, "mine").ready


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "nowhere/tokens.db", "tokens.txt"])
def test_an_address_at_which_nothing_answers_is_one_line(tmp_path, uri, address, capfd):
    gallery = random_gallery(tmp_path, 7, 5, copies=False)[0]
    with pytest.raises(InputError, match=rf"`uri` {address} fails \(.*\): check it and its server") as caught:
        MilvusEngine(gallery, address)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(InputError, match=r'pip install "sprc-regions\[milvus\]"'):
        MilvusEngine(random_gallery(tmp_path, 8, 5, copies=False)[0], "tokens.db")


def test_a_server_is_given_float16(tmp_path, monkeypatch):
    """What is sent: no server is needed for that."""
    pytest.importorskip("pymilvus", reason="pymilvus is not installed (extra `milvus`)")
    sent = FakeServer()
    monkeypatch.setattr(MilvusEngine, "_connect", lambda self: sent)
    gallery, tokens, queries, _ = random_gallery(tmp_path, 9, 20, copies=False)
    sent.tokens = tokens.astype(np.float16).astype(np.float32)
    engine = MilvusEngine(gallery, "http://server:19530")
    engine.write_rows()
    assert len(sent.rows) == 60 and all(row["vector"].dtype == np.float16 for row in sent.rows)
    assert [(row["id"], row["image"], row["token"]) for row in sent.rows[:4]] == [
        (0, 0, 0),
        (1, 0, 1),
        (2, 0, 2),
        (3, 1, 0),
    ]
    assert found_by(gallery, engine, queries, 3) == [plain_search(tokens, q, 3) for q in queries]


class FakeServer:
    """Answers as a server that rounds queries and rows to float16."""

    def __init__(self):
        self.rows, self.tokens = [], None

    def has_collection(self, name):
        return bool(self.rows)

    def get_collection_stats(self, name):
        return {"row_count": len(self.rows)}

    def create_collection(self, name, schema, index_params):
        assert "FLOAT16_VECTOR" in str(schema)

    def insert(self, name, rows, timeout):
        self.rows += rows

    def flush(self, name): ...

    def load_collection(self, name): ...

    def search(self, name, data, limit, **_):
        assert data[0].dtype == np.float16
        scores = (self.tokens @ data[0].astype(np.float32)).max(axis=1)
        return [[{"distance": scores[i], "entity": {"image": i}} for i in np.argsort(-scores)[:limit]]]


def test_a_row_holds_a_token_of_an_image(tmp_path, uri):
    gallery = random_gallery(tmp_path, 10, 5, copies=False)[0]
    engine = MilvusEngine(gallery, uri)
    engine.write_rows()
    found = engine.client.get(engine.collection, ids=[7])[0]
    assert (found["image"], found["token"]) == (2, 1)
    np.testing.assert_array_equal(np.array(found["vector"], np.float32), gallery.tokens(2, 3)[0, 1].astype(np.float32))
