"""Write the two files that the CIRR test server takes, and check them."""

import argparse
from pathlib import Path

from sprc.core.command_line import HelpFormatter, run_main, user_path
from sprc.core.errors import InputError
from sprc.core.options import require_given
from sprc.core.places import REPOSITORY
from sprc.retrieval.checkpoint_run import evaluation_config
from sprc.retrieval.options import add_evaluation_flags


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_evaluation_flags(parser, leave_out=("dataset", "gallery"))
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output-folder", type=user_path, default=REPOSITORY / "submission" / "CIRR", help="where the files go"
    )
    output.add_argument(
        "--rerank", nargs="?", const="true", metavar="BOOL", help="refused but for false: there is no re-ranking model"
    )
    return parser


def main(argv: list[str] | None = None) -> list[Path]:
    """Write and check both files; returns their paths. Raises InputError if a flag or a file is wrong."""
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    require_given(parser, given, ("model_path",))
    folder, rerank = given.pop("output_folder"), given.pop("rerank")
    if rerank not in (None, "False", "false", "0", "no"):
        raise InputError("`rerank`: this fork has no re-ranking model; leave the flag out")
    config = evaluation_config(given | {"dataset": "CIRR"})
    from sprc.benchmarks.cirr import NAMES_PER_PAIR  # heavy: torch
    from sprc.retrieval.evaluate_checkpoint import submit

    task, paths = submit(config, folder)
    for path, count in zip(paths, NAMES_PER_PAIR.values(), strict=True):
        print(f"{path}: {len(task.queries)} pairs with {count} names each, checked")
    return paths


def run() -> None:
    """The command `sprc-submit`."""
    run_main(main)


if __name__ == "__main__":
    run()
