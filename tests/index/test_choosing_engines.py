"""An engine by its name, and the one that `auto` means."""

import numpy as np
import pytest
from indexes import random_gallery

from sprc.core.errors import InputError
from sprc.index import engines
from sprc.index.engines import choose_engine
from sprc.index.exact import ExactEngine


@pytest.fixture
def gallery(tmp_path):
    return random_gallery(tmp_path, 0, 30, copies=False)[0]


def kind(engine) -> str:
    return type(engine).__name__


def test_small_galleries_and_a_gpu_have_the_exact_engine(gallery, monkeypatch):
    assert kind(choose_engine(gallery)) == "ExactEngine"
    monkeypatch.setattr(engines, "FAISS_FROM", 30)
    assert kind(choose_engine(gallery, "auto", "cuda")) == "ExactEngine"


def test_large_galleries_have_faiss_and_the_ivf_once_it_is_built(gallery, monkeypatch):
    pytest.importorskip("faiss", reason="faiss is not installed (extra `index`)")
    from sprc.index.ivf_build import build_ivf

    monkeypatch.setattr(engines, "FAISS_FROM", 30)
    assert kind(choose_engine(gallery)) == "FaissEngine"
    build_ivf(gallery, np.eye(8, dtype=np.float32))
    assert kind(choose_engine(gallery)) == "IvfEngine"
    assert kind(choose_engine(gallery, "exact", memory_mib=3)) == "ExactEngine"


def test_without_faiss_the_exact_engine_serves(gallery, monkeypatch):
    monkeypatch.setattr(engines, "FAISS_FROM", 30)
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert isinstance(choose_engine(gallery), ExactEngine)


@pytest.mark.parametrize("name", ["faiss", "ivf"])
def test_faiss_that_is_missing_is_named(gallery, monkeypatch, name):
    pytest.importorskip("faiss", reason="faiss is not installed (extra `index`)")
    import sys

    from sprc.index.ivf_build import build_ivf

    build_ivf(gallery, np.eye(8, dtype=np.float32))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r'pip install "sprc-regions\[index\]"'):
        choose_engine(gallery, name)


def test_an_unknown_name_is_refused_with_the_known_ones(gallery):
    with pytest.raises(InputError, match="`engine` is annoy: give one of auto, exact, faiss, ivf, milvus"):
        choose_engine(gallery, "annoy")


def test_milvus_needs_an_address(gallery):
    with pytest.raises(InputError, match="`engine` milvus needs `uri`"):
        choose_engine(gallery, "milvus")


def test_milvus_is_given_its_rows(gallery, tmp_path):
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed (extra `milvus`)")
    assert choose_engine(gallery, "milvus", uri=str(tmp_path / "a.db")).ready
