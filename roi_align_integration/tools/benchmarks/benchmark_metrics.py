"""Time and peak memory of the CIRR metrics, on a score matrix of CIRR val's size that every machine rebuilds alike."""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

from sprc.core.command_line import user_path
from sprc.core.errors import InputError
from sprc.core.files import read_json
from sprc.core.interrupts import leave_interrupts_to_parent
from sprc.core.places import REPOSITORY

ANNOTATION_FILES = ("captions/cap.rc2.val.json", "image_splits/split.rc2.val.json")


def load_annotations(folder: Path) -> tuple[list[dict], list[str]]:
    """The captions of CIRR val and the names of its gallery. Raises InputError that names the missing files."""
    missing = [str(folder / name) for name in ANNOTATION_FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"missing: {', '.join(missing)}; give the folder by --annotations, or use --synthetic")
    captions, split = (folder / name for name in ANNOTATION_FILES)
    fix = "download it again, or use --synthetic"
    return read_json(captions, list, fix), list(read_json(split, dict, fix))


def made_up_annotations(queries: int = 4181, images: int = 2297) -> tuple[list[dict], list[str]]:
    """Captions and gallery names in CIRR's format, by default of the size of CIRR val; `images` is at least 6."""
    names = [f"made-up-{image}" for image in range(images)]
    captions = []
    for query in range(queries):
        start = 6 * (query % (images // 6))
        members = names[start : start + 6]
        reference, target = members[query % 6], members[(query + 1) % 6]
        captions.append({"reference": reference, "target_hard": target, "img_set": {"members": members}})
    return captions, names


def recipe_scores(captions: list[dict], names: list[str]) -> "np.ndarray":
    """A (Q, N) float32 score matrix without ties: random, but every other target is put near the top.

    The reference scores highest of all, so that a metric that forgets to take it off is caught.
    """
    import numpy as np

    column_of = {name: column for column, name in enumerate(names)}
    total = len(names)
    ranks = np.random.default_rng(0).random((len(captions), total)).argsort(axis=1).argsort(axis=1)
    scores = (ranks / 4096).astype(np.float32)
    for query, entry in enumerate(captions):
        if query % 2 == 0:
            rank = total - 1 - ((7 * query) % 10) ** 2 // 2
            scores[query, column_of[entry["target_hard"]]] = np.float32((rank + 0.5) / 4096)
        scores[query, column_of[entry["reference"]]] = np.float32((total + 1) / 4096)
    return scores


def metric_names(captions: list[dict], names: list[str]) -> dict[str, list]:
    """The keyword arguments of the metrics other than the scores."""
    return {
        "gallery_names": names,
        "reference_names": [entry["reference"] for entry in captions],
        "target_names": [entry["target_hard"] for entry in captions],
        "group_members": [entry["img_set"]["members"] for entry in captions],
    }


def naive_cirr_metrics(scores, gallery_names, reference_names, target_names, group_members) -> dict[str, float]:
    """`cirr_metrics` in the obvious slow way: sort all names by score, then look for the target."""
    ranks = {"group_recall_at": [], "recall_at": []}
    for row, reference, target, members in zip(
        scores.tolist(), reference_names, target_names, group_members, strict=True
    ):
        # `sorted` is stable, also in reverse: equal scores keep the order of the gallery.
        pairs = sorted(zip(row, gallery_names, strict=True), key=lambda pair: pair[0], reverse=True)
        ordered = [name for _, name in pairs if name != reference]
        ranks["group_recall_at"].append([name for name in ordered if name in members].index(target))
        ranks["recall_at"].append(ordered.index(target))
    cutoffs = [("group_recall_at", k) for k in (1, 2, 3)] + [("recall_at", k) for k in (1, 5, 10, 50)]
    recalls = {
        f"{prefix}{k}": 100 * sum(rank < k for rank in ranks[prefix]) / len(target_names) for prefix, k in cutoffs
    }
    return recalls | _naive_means(list(recalls.values()), recalls["recall_at5"], recalls["group_recall_at1"])


def _naive_means(values: list[float], recall_at5: float, group_recall_at1: float) -> dict[str, float]:
    return {
        "mean(R@5+R_s@1)": (recall_at5 + group_recall_at1) / 2,
        "arithmetic_mean": sum(values) / len(values),
        "harmonic_mean": 0.0 if 0 in values else len(values) / sum(1 / value for value in values),
        "geometric_mean": math.prod(values) ** (1 / len(values)),
    }


def save_case(annotations: Path | None, folder: Path) -> None:
    """Write the score matrix and the names to `folder`; the annotations are made up if `annotations` is None."""
    import numpy as np

    captions, names = made_up_annotations() if annotations is None else load_annotations(annotations)
    np.save(folder / "scores.npy", recipe_scores(captions, names))
    (folder / "names.json").write_text(json.dumps(metric_names(captions, names)), encoding="utf-8")


def measure(folder: Path, naive: bool, runs: int, threads: int) -> dict:
    """Metrics, median seconds of `runs` calls, extra peak memory in MiB. For a fresh process: its peak is compared."""
    import numpy as np
    import torch

    from sprc.benchmarks.cirr import cirr_metrics

    torch.set_num_threads(threads)
    metric = naive_cirr_metrics if naive else cirr_metrics
    names = read_json(folder / "names.json", dict, "run this again")
    scores = torch.from_numpy(np.load(folder / "scores.npy"))
    before = peak_memory_mib()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        metrics = metric(scores, **names)
        seconds.append(time.perf_counter() - start)
    mib = peak_memory_mib() - before
    return {"metrics": metrics, "seconds": statistics.median(seconds), "mib": mib, "torch": torch.__version__}


def peak_memory_mib() -> float:
    """Peak resident memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes on macOS, KiB on Linux


def processor() -> str:
    """The processor's name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def report(name: str, runs: int, threads: int, result: dict) -> str:
    """One line: what was measured, on which machine, and when."""
    machine = f"{processor()}, {os.cpu_count()} cores, {threads} threads, torch {result['torch']}"
    return (
        f"{date.today()} | {machine} | {name}: "
        f"{result['seconds']:.3f} s (median of {runs}), {result['mib']:.1f} MiB more peak memory"
    )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--annotations",
        type=user_path,
        default=REPOSITORY / "cirr_dataset" / "cirr",
        help="folder of CIRR's annotations",
    )
    parser.add_argument("--synthetic", action="store_true", help="made-up annotations of the size of CIRR val instead")
    parser.add_argument("--runs", type=int, default=7, help="calls of which the median time counts")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of torch")
    parser.add_argument("--naive", action="store_true", help="also time the obvious slow version, once")
    arguments = parser.parse_args(argv)
    if arguments.runs < 1 or arguments.threads < 1:
        parser.error("--runs and --threads must be at least 1")
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Measure and print one line, two with `--naive`, and the metrics.

    Raises:
        InputError: the annotations are not there.
    """
    arguments = parse_arguments(argv)
    annotations = None if arguments.synthetic else arguments.annotations
    # Each step has a process of its own: a peak is never forgotten, so building the scores would hide the metrics' own.
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(
            1, get_context("spawn"), initializer=leave_interrupts_to_parent, max_tasks_per_child=1
        ) as pool,
    ):
        pool.submit(save_case, annotations, Path(folder)).result()
        fast = pool.submit(measure, Path(folder), False, arguments.runs, arguments.threads).result()
        print(report("cirr_metrics", arguments.runs, arguments.threads, fast))
        if arguments.naive:
            slow = pool.submit(measure, Path(folder), True, 1, arguments.threads).result()
            print(report("naive_cirr_metrics", 1, arguments.threads, slow))
    print(", ".join(f"{name} {value:.4f}" for name, value in fast["metrics"].items()))


if __name__ == "__main__":
    from sprc.core.command_line import run_main

    run_main(main)
