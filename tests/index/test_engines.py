"""Every engine finds what a plain search over all tokens finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import unit_rows, write_index

from sprc.core.errors import InputError
from sprc.index.engine import search
from sprc.index.exact import ExactEngine
from sprc.index.gallery import Gallery


def plain_search(tokens: np.ndarray, query: np.ndarray, k: int) -> list[tuple[int, float, int]]:
    """(place, score, token) of the k best images, written as the rule is told."""
    found = []
    for place, image in enumerate(tokens.astype(np.float16).astype(np.float64)):
        cosines = [float(np.float32(token @ query.astype(np.float64))) for token in image]
        found.append((place, max(cosines), cosines.index(max(cosines))))
    return sorted(found, key=lambda match: (-match[1], match[0]))[:k]


def found_by(gallery: Gallery, engine, queries: np.ndarray, k: int) -> list[list[tuple[int, float, int]]]:
    return [[(m.position, m.score, m.token) for m in row] for row in search(gallery, engine, queries, k)]


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1), images=st.integers(1, 60), copies=st.booleans(), memory=st.sampled_from([1e-3, 1])
)
def test_the_exact_engine_finds_what_a_plain_search_finds(tmp_path_factory, seed, images, copies, memory):
    rng = np.random.default_rng(seed)
    tokens = unit_rows(rng, images, 3, 8)
    if copies:
        tokens = tokens[rng.integers(0, max(1, images // 3), images)]  # ties everywhere
    gallery = Gallery(write_index(tmp_path_factory.mktemp("index") / "i", tokens))
    queries = unit_rows(rng, 5, 8)
    k = int(rng.integers(1, images + 1))
    assert found_by(gallery, ExactEngine(gallery, memory), queries, k) == [plain_search(tokens, q, k) for q in queries]


def test_more_results_than_images_are_refused(tmp_path):
    gallery = Gallery(write_index(tmp_path / "i", unit_rows(np.random.default_rng(0), 4, 3, 8)))
    with pytest.raises(InputError, match=r"`top_k` is 5: the index .* holds 4 images"):
        search(gallery, ExactEngine(gallery), unit_rows(np.random.default_rng(1), 1, 8), 5)


def test_a_query_that_is_no_number_is_refused(tmp_path):
    gallery = Gallery(write_index(tmp_path / "i", unit_rows(np.random.default_rng(0), 4, 3, 8)))
    with pytest.raises(InputError, match="no numbers for a query"):
        search(gallery, ExactEngine(gallery), np.full((1, 8), np.nan, np.float32), 2)
