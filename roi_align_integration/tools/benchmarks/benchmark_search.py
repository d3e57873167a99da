"""How fast the engines search an index of made-up tokens, how much memory that takes, and whether they find the best.

Every number is of this process: times are medians of single queries with their scores, files come from the memory of
the system where they fit it, and memory is what is anonymous, without mapped files.
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from benchmark_metrics import processor
from search_data import TokenSource, write_made_up_index

from sprc.core.command_line import HelpFormatter, non_negative_int, positive_int, run_main, user_path
from sprc.index.engine import Engine, search
from sprc.index.engines import choose_engine
from sprc.index.gallery import Gallery
from sprc.index.ivf import read_ivf
from sprc.index.ivf_build import build_ivf

RECALL_AT = 50
SECONDS_AT_MOST = 40  # for the single queries of an engine


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument("--images", type=positive_int, default=20_000, help="in the index")
    parser.add_argument("--tokens", type=positive_int, default=32, help="of an image")
    parser.add_argument("--width", type=positive_int, default=256, help="of a token")
    parser.add_argument("--folder", type=user_path, help="of the index, which stays and is used again (default: none)")
    parser.add_argument("--queries", type=positive_int, default=100, help="single queries whose median time counts")
    parser.add_argument("--checked", type=non_negative_int, default=1000, help="queries compared with a plain search")
    parser.add_argument("--faiss-checked", type=non_negative_int, default=1000, help="of these, for faiss")
    parser.add_argument(
        "--ivf-queries", type=positive_int, default=400, help="that choose the lists and measure recall"
    )
    parser.add_argument("--memory-mib", type=positive_int, default=256, help="bound of the exact search")
    parser.add_argument("--threads", type=positive_int, default=2, help="of torch and faiss")
    return parser


def main(argv: list[str] | None = None) -> dict[str, str]:
    """Print a table, and return its rows: what was measured -> how much it is."""
    args = build_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    import faiss

    faiss.omp_set_num_threads(args.threads)
    machine = f"{processor()}, {args.threads} threads, torch {torch.__version__}, faiss {version('faiss-cpu')}"
    print(f"{date.today()}, {machine}")
    print(f"{args.images} images x {args.tokens} tokens x {args.width}\n\n| | |\n| --- | --- |")
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, value in Measured(args, args.folder or Path(temporary) / "index").rows():
            rows[name] = value
            print(f"| {name} | {value} |", flush=True)
    return rows


class Measured:
    """The measurements of one index."""

    def __init__(self, args: argparse.Namespace, path: Path):
        self.args, self.path, self.k = args, path, min(RECALL_AT, args.images)
        self.source = TokenSource(args.images, args.tokens, args.width)
        write_made_up_index(path, self.source)
        self.gallery = Gallery(path)

    def rows(self) -> Iterator[tuple[str, str]]:
        """What was measured, and how much it is."""
        yield from self._ivf_rows()
        yield "opening the index", timed([lambda: Gallery(self.path).digest] * 3)
        yield "opening its IVF", timed([lambda: self._engine("ivf")] * 3)
        engines = {name: self._engine(name) for name in ("ivf", "faiss", "exact")}
        yield "ivf: one of the first queries, that map its files", self._milliseconds(engines["ivf"], seed=5)
        for name, engine in engines.items():
            yield f"{name}: a query", self._milliseconds(engine)
        yield f"exact: additional memory, --memory-mib {self.args.memory_mib}", self._memory(engines["exact"])
        yield from self._equality(engines["exact"], engines["faiss"])

    def _engine(self, name: str) -> Engine:
        return choose_engine(self.gallery, name, memory_mib=self.args.memory_mib)

    def _ivf_rows(self) -> Iterator[tuple[str, str]]:
        head = read_ivf(self.gallery)
        if head is None:
            start = time.perf_counter()
            head = build_ivf(self.gallery, self.source.queries(self.gallery, self.args.ivf_queries, 1))
            yield "ivf: building and measuring it", f"{(time.perf_counter() - start) / 60:.1f} minutes"
        yield "ivf", str(head)

    def _milliseconds(self, engine: Engine, seed: int = 2) -> str:
        queries = self.source.queries(self.gallery, self.args.queries, seed)
        for query in queries[:3]:  # to warm up
            search(self.gallery, engine, query[None], self.k)
        return timed([partial(search, self.gallery, engine, query[None], self.k) for query in queries])

    def _memory(self, engine: Engine) -> str:
        queries = self.source.queries(self.gallery, 16, 3)
        with peak_anonymous_mib() as peak:
            search(self.gallery, engine, queries[:1], self.k)
            search(self.gallery, engine, queries, self.k)
        return f"{peak['mib']:.0f} MiB"

    def _equality(self, exact: Engine, faiss: Engine) -> Iterator[tuple[str, str]]:
        """How many queries have the same images and scores as a plain search in float64."""
        queries = self.source.queries(self.gallery, self.args.checked, 4)
        expected = plain_search(self.gallery, queries, self.k)
        found = search(self.gallery, exact, queries, self.k)
        yield "exact: the same as a plain search in float64", f"{same(found, expected)} of {len(found)} queries"
        singly = [search(self.gallery, faiss, query[None], self.k)[0] for query in queries[: self.args.faiss_checked]]
        yield "faiss: the same as a plain search in float64", f"{same(singly, expected)} of {len(singly)} queries"


def same(found: list, expected: list[list[tuple[int, float]]]) -> int:
    pairs = zip([[(match.position, match.score) for match in row] for row in found], expected, strict=False)
    return sum(row == other for row, other in pairs)


def plain_search(gallery: Gallery, queries: np.ndarray, k: int, at_once: int = 200) -> list[list[tuple[int, float]]]:
    """(place, score) of the k best images of each query (B, E): all cosines in float64, and a sort."""
    scores, places = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), int)
    for start in range(0, len(gallery), at_once):
        tokens = gallery.tokens(start, start + at_once).astype(np.float64)  # (n, Q, E)
        cosines = queries.astype(np.float64) @ tokens.reshape(-1, tokens.shape[2]).T  # (B, n Q)
        best = cosines.reshape(len(queries), *tokens.shape[:2]).max(axis=2).astype(np.float32)
        scores = np.concatenate([scores, best], axis=1)
        numbers = np.broadcast_to(np.arange(start, start + len(tokens)), best.shape)
        places = np.concatenate([places, numbers], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, places = (np.take_along_axis(values, order, axis=1) for values in (scores, places))
    return [list(zip(row.tolist(), values.tolist(), strict=True)) for row, values in zip(places, scores, strict=True)]


def timed(actions: list[Callable]) -> str:
    """Median and least milliseconds of actions by the clock, and the median of all cores together."""
    by_clock, of_cores, begun = [], [], time.monotonic()
    for action in actions:
        start, used = time.perf_counter(), time.process_time()
        action()
        by_clock.append(1000 * (time.perf_counter() - start))
        of_cores.append(1000 * (time.process_time() - used))
        if time.monotonic() - begun > SECONDS_AT_MOST:
            break
    middle, best, cores = np.median(by_clock), np.min(by_clock), np.median(of_cores)
    return f"{middle:.1f} ms (median of {len(by_clock)}; fastest {best:.1f} ms); {cores:.1f} ms of all cores together"


def anonymous_mib() -> float:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 2**10


@contextmanager
def peak_anonymous_mib() -> Iterator[dict[str, float]]:
    """The dictionary holds, at the end, by how much anonymous memory grew at most; it is looked at every 2 ms."""
    before, peak, over = anonymous_mib(), {"mib": 0.0}, threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            peak["mib"] = max(peak["mib"], anonymous_mib() - before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    run_main(main)
