"""An IVF finds what the exact engine finds, as far as it says, and is never taken for that of another gallery."""

import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import found_by, plain_search, random_gallery, unit_rows, write_index

from sprc.core.errors import InputError
from sprc.core.locks import held
from sprc.index import ivf_build
from sprc.index.engine import search
from sprc.index.exact import ExactEngine
from sprc.index.gallery import Gallery
from sprc.index.gallery_files import IndexFolder
from sprc.index.ivf import IvfEngine, read_ivf
from sprc.index.ivf_build import build_ivf, list_count

pytest.importorskip("faiss", reason="faiss is not installed (extra `index`)")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 60), copies=st.booleans())
def test_all_lists_hold_what_a_plain_search_finds(tmp_path_factory, seed, images, copies):
    gallery, tokens, queries, k = random_gallery(tmp_path_factory.mktemp("index"), seed, images, copies)
    build_ivf(gallery, queries)
    engine = IvfEngine(gallery)
    engine.probes, engine.tokens_an_image = engine.index.nlist, 3 * images
    assert found_by(gallery, engine, queries, k) == [plain_search(tokens, q, k) for q in queries]


def test_codes_are_packed_as_faiss_packs_them():
    import faiss

    tokens = unit_rows(np.random.default_rng(0), 77, 16)
    index = faiss.IndexIVFPQFastScan(faiss.IndexFlatIP(16), 16, 1, 8, 4, faiss.METRIC_INNER_PRODUCT, 32)
    index.by_residual, index.pq.cp.min_points_per_centroid = True, 1
    index.train(tokens)
    index.add(tokens)
    codes = ivf_build._codes(index, tokens, np.zeros(77, np.int64))
    lists = faiss.downcast_InvertedLists(index.invlists)
    theirs = faiss.rev_swig_ptr(lists.get_codes(0), 96 * index.code_size)
    np.testing.assert_array_equal(ivf_build.packed(codes).reshape(-1), theirs)


@pytest.fixture
def gallery(tmp_path):
    """600 images around 60 centres: several lists, and a recall that is not for nothing."""
    rng = np.random.default_rng(0)
    centres = np.repeat(unit_rows(rng, 60, 1, 16), 10, axis=0)
    tokens = centres + 0.5 * unit_rows(rng, 600, 4, 16)
    return Gallery(write_index(tmp_path / "i", tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)))


def queries_of(gallery, count=60):
    return unit_rows(np.random.default_rng(1), count, gallery.maker.width)


def test_the_recall_is_measured_on_the_queries_that_did_not_choose(gallery, monkeypatch):
    monkeypatch.setattr(ivf_build, "AIM", 0.9)
    queries = queries_of(gallery)
    head = build_ivf(gallery, queries)
    assert read_ivf(gallery) == head
    assert 1 < head.probes < head.lists == list_count(2400)
    engine, exact = IvfEngine(gallery), ExactEngine(gallery)

    def recall(queries):
        pairs = zip(search(gallery, engine, queries, 50), search(gallery, exact, queries, 50), strict=True)
        return np.mean([len({m.position for m in found} & {m.position for m in best}) / 50 for found, best in pairs])

    assert head.recall == pytest.approx(recall(queries[1::2])) and head.queries == 30
    assert recall(queries[::2]) >= 0.9
    steps = ivf_build._steps(head.lists)
    engine.probes = steps[steps.index(head.probes) - 1]
    assert recall(queries[::2]) < 0.9  # one step less does not suffice


def test_scores_are_those_of_the_exact_engine(gallery):
    build_ivf(gallery, queries_of(gallery))
    queries = queries_of(gallery, 9)
    exact = {m.position: m for row in search(gallery, ExactEngine(gallery), queries[:1], 600) for m in row}
    found = search(gallery, IvfEngine(gallery), queries[:1], 20)[0]
    assert all(exact[match.position] == match for match in found)


def test_as_many_images_are_found_as_are_wanted(gallery):
    build_ivf(gallery, queries_of(gallery))
    engine = IvfEngine(gallery)
    engine.probes = 1
    assert [len(row) for row in search(gallery, engine, queries_of(gallery, 3), 600)] == [600] * 3


def test_an_ivf_of_an_earlier_gallery_is_not_used(gallery, caplog):
    build_ivf(gallery, queries_of(gallery))
    IndexFolder(gallery.path).write_gallery(0, np.arange(599))
    changed = Gallery(gallery.path)
    with caplog.at_level(logging.WARNING):
        assert read_ivf(changed) is None
    assert "of an earlier state of the index" in caplog.text
    with pytest.raises(InputError, match="has no IVF as it is now: build one"):
        IvfEngine(changed)
    build_ivf(changed, queries_of(changed))
    assert IvfEngine(changed).index.ntotal == 4 * 599


def test_a_gallery_without_an_ivf_is_refused(gallery):
    with pytest.raises(InputError, match="has no IVF as it is now"):
        IvfEngine(gallery)


@pytest.mark.parametrize("place", ["_assign", "_fill", "_measured", "write_head"])
def test_a_build_that_ends_early_leaves_what_was_there(gallery, monkeypatch, place):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ivf_build, place, die)
        build_ivf(gallery, queries_of(gallery))
    assert read_ivf(gallery) is None
    before = build_ivf(gallery, queries_of(gallery))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ivf_build, place, die)
        build_ivf(gallery, queries_of(gallery))
    assert read_ivf(gallery) == before
    assert sorted(path.name for path in (gallery.data_folder / "ivf").iterdir()) == [
        "ivf.json",
        "lists.bin",
        "ranges.npy",
        "trained.faiss",
    ]
    IvfEngine(gallery)


@pytest.mark.parametrize("name", ["lists.bin", "ranges.npy", "trained.faiss"])
def test_a_damaged_file_is_refused_before_faiss_reads_it(gallery, name):
    build_ivf(gallery, queries_of(gallery))
    file = gallery.data_folder / "ivf" / name
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"is damaged: remove .*ivf and build it again"):
        IvfEngine(gallery)


def test_numbers_of_tokens_that_are_none_are_damage(gallery):
    """lists.bin is large and mapped: what is wrong in it is found when it is read."""
    queries = queries_of(gallery)
    build_ivf(gallery, queries)
    file = gallery.data_folder / "ivf" / "lists.bin"
    content, codes = bytearray(file.read_bytes()), 8 * len(gallery) * gallery.maker.tokens
    content[-codes:] = np.full(codes // 8, 2**40, np.int64).tobytes()  # the numbers stand after the last list's codes
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"lists\.bin is damaged: remove .*ivf and build it again"):
        search(gallery, IvfEngine(gallery), queries, 5)


def test_a_head_that_lacks_something_is_refused(gallery):
    build_ivf(gallery, queries_of(gallery))
    file = gallery.data_folder / "ivf" / "ivf.json"
    head = json.loads(file.read_text())
    file.write_text(json.dumps(head | {"probes": "many"}))
    with pytest.raises(InputError, match=r"ivf\.json lacks what an ivf\.json holds"):
        read_ivf(gallery)


def test_one_query_measures_no_recall(gallery):
    with pytest.raises(InputError, match="1 queries measure no recall"):
        build_ivf(gallery, queries_of(gallery, 1))


def test_an_index_in_use_is_not_given_an_ivf(gallery):
    with held(gallery.path), pytest.raises(InputError, match="in use by another process"):
        build_ivf(gallery, queries_of(gallery))
