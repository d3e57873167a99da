"""How fast a training is, and where its time goes: a process for each row of a Markdown table.

The rows: `upstream` (two ViT calls, text padded to 32, eager attention, every pass of the Q-Former by itself, a wait
for the device after every step, fp16 on CUDA), `plain` and `cached` (this project, from images and from the feature
cache), both also with regions, `build` (making the cache) and `validation` (from the cache).
"""

import argparse
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

from sprc.core.command_line import HelpFormatter, non_negative_int, positive_int, run_main, user_path
from sprc.core.files import held_file, read_bytes, write_atomically
from sprc.core.places import REPOSITORY

DATA = REPOSITORY / "roi_align_integration" / "data" / "benchmark_speed"
STEPS = ("upstream", "plain", "plain+regions", "cached", "cached+regions")
ROWS = (*STEPS, "build", "validation")
COLUMNS = ("date", "machine", "model", "batch", "precision", "row", "a second", "seconds a step", "peak GiB",
           "of matrix throughput")  # fmt: skip
# CIRR: training triplets, images of train and val, validation queries.
CIRR_TRIPLETS, CIRR_IMAGES, CIRR_QUERIES, CIRR_EPOCHS = 28225, 16939 + 2297, 4181, 50


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="what to measure")
    parser.add_argument("--backbone", default="pretrain", help="pretrain, pretrain_vitL, tiny; of random weights")
    parser.add_argument("--batch-size", type=positive_int, help="triplets in a step (default: 4; on CUDA 128)")
    parser.add_argument("--steps", type=positive_int, default=5, help="measured, after as many that warm up")
    parser.add_argument("--precision", default="auto", help="as in blip_fine_tune_2.py; `upstream` has fp16 on CUDA")
    parser.add_argument("--micro-batch", type=positive_int, help="as in blip_fine_tune_2.py")
    parser.add_argument("--compile", action="store_true", help="as in blip_fine_tune_2.py")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--cache-device", default="cpu", choices=("cpu", "cuda"), help="as in blip_fine_tune_2.py")
    parser.add_argument("--num-workers", type=non_negative_int, default=0, help="processes that load images")
    parser.add_argument("--threads", type=positive_int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--profile", action="store_true", help="print what one step of every row spends its time on")
    parser.add_argument("--table", type=user_path, help="Markdown file to add the rows to")
    parser.add_argument("--folder", type=user_path, default=DATA, help="for images, weights (4.7 GB) and cache; kept")
    parser.add_argument("--row", choices=("prepare", *ROWS), help=argparse.SUPPRESS)  # in a process of its own
    return parser


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Print and return what was measured, row by row."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.row:
        from speed_rows import measure_row  # heavy: torch

        print(json.dumps(measure_row(args)))
        return {}
    from machine import machine_name  # heavy: torch

    found = {row: run_row(row, argv) for row in ("prepare", *args.rows)}
    machine = f"{machine_name(args.device)}, {args.threads} CPU threads"
    lines = [table_line(args, machine, row, found[row]) for row in args.rows]
    print("\n".join([header(), *lines]))
    print(whole_training(found))
    if args.table:
        add_lines(args.table, lines)
    return found


def add_lines(table: Path, lines: list[str]) -> None:
    """Add rows to a Markdown file, which another process may do at the same time."""
    with held_file(table, wait=True):
        before = read_bytes(table, "give another --table").decode("utf-8", "replace") if table.is_file() else header()
        write_atomically(table, "\n".join([before.rstrip("\n"), *lines, ""]))


def run_row(row: str, argv: list[str]) -> dict:
    """The numbers of a row, measured in a process of its own."""
    command = [sys.executable, __file__, *argv, "--row", row]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    print("\n".join(answer[:-1]), flush=True)
    return json.loads(answer[-1])


def header() -> str:
    return f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}"


def table_line(args: argparse.Namespace, machine: str, row: str, found: dict) -> str:
    settings = {"compiled": args.compile, f"micro-batch {args.micro_batch}": args.micro_batch}
    name = [f"`{row}`", *(words for words, given in settings.items() if given and row in STEPS)]
    share = f"{100 * found['share']:.0f} %" if "share" in found else ""
    seconds = f"{found['seconds']:.3f}" if "seconds" in found else ""
    rate = f"{found['rate']:.3g} {found['unit']}"
    cells = (date.today().isoformat(), machine, args.backbone, found["batch"], found["precision"],
             ", ".join(name), rate, seconds, f"{found['gib']:.2f}", share)  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def whole_training(found: dict[str, dict]) -> str:
    """50 epochs of CIRR, computed from the measured parts."""
    if not {"cached", "build", "validation"} <= found.keys():
        return "50 epochs of CIRR can be computed if cached, build and validation are measured"
    parts = {
        "cache": CIRR_IMAGES / found["build"]["rate"],
        "training": CIRR_EPOCHS * CIRR_TRIPLETS / found["cached"]["rate"],
        "validation": CIRR_EPOCHS * CIRR_QUERIES / found["validation"]["rate"],
    }
    words = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in parts.items())
    return f"50 epochs of CIRR, computed from these rows: {sum(parts.values()) / 60:.1f} minutes ({words})"


if __name__ == "__main__":
    run_main(main)
