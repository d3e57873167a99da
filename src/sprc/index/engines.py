"""The engines by name."""

from collections.abc import Callable
from importlib.util import find_spec

import torch

from sprc.core.errors import InputError
from sprc.index.engine import Engine
from sprc.index.exact import ExactEngine
from sprc.index.faiss_engine import FaissEngine
from sprc.index.gallery import Gallery
from sprc.index.ivf import IvfEngine, read_ivf
from sprc.index.milvus_engine import MilvusEngine
from sprc.index.names import ENGINES

FAISS_FROM = 1000  # images


def choose_engine(
    gallery: Gallery,
    name: str = "auto",
    device: torch.device | str = "cpu",
    memory_mib: float = 256,
    uri: str | None = None,
) -> Engine:
    """The engine of a name of `ENGINES`; `uri` is for milvus, whose rows are written if they are not there.

    auto is the IVF if one is built for this gallery; on a CUDA device, for small galleries and without faiss the exact
    engine of torch; else faiss. At 1,000 images faiss needs less than half of torch's time for one query (4 and 11 ms,
    2 cores, benchmark_search.py on 2026-11-27), at 2,000 a quarter, and below both take a few ms.

    Raises InputError for an unknown name, a package that is not installed, a missing `uri`, and what an engine raises.
    """
    make: dict[str, Callable[[], Engine]] = {
        "exact": lambda: ExactEngine(gallery, memory_mib, device),
        "faiss": lambda: FaissEngine(gallery, memory_mib),
        "ivf": lambda: IvfEngine(gallery),
        "milvus": lambda: _milvus(gallery, uri, memory_mib),
    }
    if name == "auto":
        name = _best(gallery, torch.device(device))
    if name not in make:
        raise InputError(f"`engine` is {name}: give one of {', '.join(ENGINES)}")
    return make[name]()


def _best(gallery: Gallery, device: torch.device) -> str:
    if find_spec("faiss") is None:
        return "exact"
    if read_ivf(gallery) is not None:
        return "ivf"
    return "faiss" if device.type == "cpu" and len(gallery) >= FAISS_FROM else "exact"


def _milvus(gallery: Gallery, uri: str | None, memory_mib: float) -> MilvusEngine:
    if not uri:
        raise InputError("`engine` milvus needs `uri`: that of a server, or the name of a file that ends in .db")
    engine = MilvusEngine(gallery, uri, memory_mib=memory_mib)
    engine.write_rows()
    return engine
