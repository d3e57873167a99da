"""Plot losses and metrics over the epochs of one run, or of several over each other."""

import argparse
from pathlib import Path

from sprc.core.command_line import HelpFormatter, require_png, run_main, user_path
from sprc.core.files import atomic_writer
from sprc.core.places import REPOSITORY

DEFAULT_OUTPUT = REPOSITORY / "roi_align_integration" / "data" / "metrics.png"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("runs", type=user_path, nargs="+", metavar="RUN", help="the folder of a run, models/<run>")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="columns of its CSV files (default: all)")
    parser.add_argument("--output", type=user_path, default=DEFAULT_OUTPUT, help="PNG to write")
    return parser


def main(argv: list[str] | None = None) -> Path:
    """Write the plot; returns its path. Raises InputError if a CSV file is missing or broken."""
    args = build_parser().parse_args(argv)
    require_png(args.output, "the plot")
    from sprc.report.curves import plot_runs, read_runs  # heavy: fonts

    figure = plot_runs(read_runs(args.runs), args.metrics)
    with atomic_writer(args.output) as file:
        figure.savefig(file, format="png", dpi=110)
    print(f"plot {args.output}")
    return args.output


if __name__ == "__main__":
    run_main(main)
