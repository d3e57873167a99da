"""The measurements of searching."""

import numpy as np
import pytest

pytest.importorskip("faiss", reason="faiss is not installed (extra `index`)")


def test_searching_is_measured_on_a_small_index(tmp_path, capsys):
    from benchmark_search import main as benchmark

    flags = ["--images", "300", "--tokens", "4", "--width", "16", "--queries", "3", "--ivf-queries", "10"]
    flags += ["--checked", "20", "--faiss-checked", "5", "--folder", str(tmp_path / "index"), "--threads", "1"]
    rows = benchmark(flags)
    assert rows["exact: the same as a plain search in float64"] == "20 of 20 queries"
    assert rows["faiss: the same as a plain search in float64"] == "5 of 5 queries"
    assert "recall@50" in rows["ivf"] and "ivf: building and measuring it" in rows
    assert "| exact: a query | " in capsys.readouterr().out
    assert "ivf: building and measuring it" not in benchmark(flags)  # the index is used again


def test_made_up_tokens_have_length_1_and_queries_lie_near_one(tmp_path):
    from search_data import TokenSource, write_made_up_index

    from sprc.index.gallery import Gallery

    source = TokenSource(200, 8, 64)
    write_made_up_index(tmp_path / "index", source)
    gallery = Gallery(tmp_path / "index")
    tokens = gallery.tokens(0, 200).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(tokens, axis=2), 1, atol=2e-3)
    cosines = source.queries(gallery, 100, 0) @ tokens.reshape(-1, 64).T
    assert 0.6 < np.median(cosines.max(axis=1)) < 0.9
    assert not np.array_equal(tokens[0], tokens[1])
