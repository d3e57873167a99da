"""One file for each benchmark, and the interface that they share (`benchmark.py`).

A new benchmark is one file with a subclass of `Benchmark`, and one line in `BENCHMARKS`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from sprc.core.errors import InputError

if TYPE_CHECKING:
    from sprc.benchmarks.benchmark import Benchmark

# Name as users write it -> module and class. Modules are imported when they are asked for: they load torch.
BENCHMARKS = {
    "CIRR": ("sprc.benchmarks.cirr", "CIRR"),
    "FashionIQ": ("sprc.benchmarks.fashioniq", "FashionIQ"),
}


def find_benchmark(name: str) -> "type[Benchmark]":
    """The benchmark of a name, in any case. Raises InputError for another."""
    found = {known.lower(): place for known, place in BENCHMARKS.items()}.get(name.lower())
    if found is None:
        raise InputError(f"dataset {name!r} is not one that this version trains on: use `dataset` {known_names()}")
    module, class_name = found
    return getattr(import_module(module), class_name)


def known_names() -> str:
    """The benchmarks in words: CIRR or FashionIQ."""
    return " or ".join(BENCHMARKS)
