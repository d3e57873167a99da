"""The groups of settings of indexing and searching; they need no torch, so a page of help comes at once."""

from dataclasses import dataclass

from sprc.core.options import option
from sprc.index.names import ENGINES, IVF_FROM

PORT = 7860  # of the page


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """How an index is made."""

    batch_size: int = option("photographs at a time", default=32, above=0)
    ivf: str = option(
        f"make lists by which a search is faster and not always exact; auto: from {IVF_FROM:,} photographs on, if faiss"
        " is installed",
        default="auto",
        choices=("auto", "always", "never"),
    )


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """What searches an index."""

    engine: str = option(
        "auto: the lists if the index has them, else faiss or torch, which are exact", default="auto", choices=ENGINES
    )
    uri: str | None = option("milvus: the address of a server, or the name of a file that ends in .db")
