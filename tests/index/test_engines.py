"""Every engine finds what a plain search over all tokens finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import found_by, plain_search, random_gallery, unit_rows, write_index

from sprc.core.errors import InputError
from sprc.index.engine import best_of, search
from sprc.index.exact import ExactEngine
from sprc.index.faiss_engine import FaissEngine, proven
from sprc.index.gallery import Gallery
from sprc.index.gallery_files import IndexFolder


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1), images=st.integers(1, 60), copies=st.booleans(), memory=st.sampled_from([1e-3, 1])
)
def test_the_exact_engine_finds_what_a_plain_search_finds(tmp_path_factory, seed, images, copies, memory):
    gallery, tokens, queries, k = random_gallery(tmp_path_factory.mktemp("index"), seed, images, copies)
    assert found_by(gallery, ExactEngine(gallery, memory), queries, k) == [plain_search(tokens, q, k) for q in queries]


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 60), copies=st.booleans(), many=st.booleans())
def test_the_engine_of_faiss_finds_what_a_plain_search_finds(tmp_path_factory, seed, images, copies, many):
    pytest.importorskip("faiss", reason="faiss is not installed (extra `index`)")
    gallery, tokens, queries, k = random_gallery(tmp_path_factory.mktemp("index"), seed, images, copies)
    queries = np.repeat(queries, 4, axis=0) if many else queries
    expected = {q.tobytes(): plain_search(tokens, q, k) for q in queries}
    assert found_by(gallery, FaissEngine(gallery), queries, k) == [expected[q.tobytes()] for q in queries]


def test_the_engine_of_faiss_leaves_out_rows_that_no_gallery_names(tmp_path):
    pytest.importorskip("faiss", reason="faiss is not installed (extra `index`)")
    rng = np.random.default_rng(0)
    tokens, queries = unit_rows(rng, 40, 3, 8), unit_rows(rng, 5, 8)
    path, rows = write_index(tmp_path / "i", tokens), np.arange(40)[::-2]
    IndexFolder(path).write_gallery(0, rows)
    gallery = Gallery(path)
    assert found_by(gallery, FaissEngine(gallery), queries, 7) == [plain_search(tokens[rows], q, 7) for q in queries]


def test_a_list_of_entries_is_doubled_until_it_is_proven():
    scores, places = np.array([0.9, 0.9, 0.8, 0.8, 0.8, 0.1], np.float32), np.array([4, 4, -1, 2, 2, 7])
    asked = []

    def nearest(count):
        asked.append(count)
        return scores[:count], places[:count]

    assert proven(nearest, 1, 0.05, 9, 100).tolist() == [2, 4]  # 0.8 is far from 0.9
    assert proven(nearest, 1, 0.2, 9, 100).tolist() == [2, 4, 7]
    assert proven(nearest, 1, 1.0, 3, 100).tolist() == [2, 4, 7]  # the list is whole
    assert proven(nearest, 1, 1.0, 9, 16) is None
    assert asked == [4, 4, 8, 4, 8, 4, 8, 16]


def test_faiss_reads_the_tokens_where_they_are_mapped(tmp_path):
    pytest.importorskip("faiss", reason="faiss is not installed (extra `index`)")
    gallery = Gallery(write_index(tmp_path / "i", unit_rows(np.random.default_rng(0), 40, 3, 8)))
    engine = FaissEngine(gallery)
    query = unit_rows(np.random.default_rng(1), 1, 8)
    before = search(gallery, engine, query, 1)[0][0].position
    gallery.stored[before] = 0
    assert search(gallery, engine, query, 1)[0][0].position != before


def test_best_of_is_the_same_for_any_number_of_images(tmp_path):
    gallery, tokens, queries, _ = random_gallery(tmp_path, 3, 60, copies=True)
    for query in queries:
        everything = best_of(gallery, query, np.arange(60))
        assert [(m.position, m.score, m.token) for m in everything] == plain_search(tokens, query, 60)
        assert all(best_of(gallery, query, np.arange(60), k) == everything[:k] for k in (1, 7, 60, 99))


def test_more_results_than_images_are_refused(tmp_path):
    gallery = Gallery(write_index(tmp_path / "i", unit_rows(np.random.default_rng(0), 4, 3, 8)))
    with pytest.raises(InputError, match=r"`top_k` is 5: the index .* holds 4 images"):
        search(gallery, ExactEngine(gallery), unit_rows(np.random.default_rng(1), 1, 8), 5)


def test_a_query_that_is_no_number_is_refused(tmp_path):
    gallery = Gallery(write_index(tmp_path / "i", unit_rows(np.random.default_rng(0), 4, 3, 8)))
    with pytest.raises(InputError, match="no numbers for a query"):
        search(gallery, ExactEngine(gallery), np.full((1, 8), np.nan, np.float32), 2)
