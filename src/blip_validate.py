"""Evaluate a checkpoint on the validation split of a benchmark."""

import argparse

from sprc.core.command_line import HelpFormatter, run_main
from sprc.core.options import require_given
from sprc.retrieval.checkpoint_run import evaluation_config
from sprc.retrieval.options import add_evaluation_flags


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_evaluation_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print the metrics, one a line, and return them. Raises InputError if a flag or a file is wrong."""
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    require_given(parser, given, ("dataset", "model_path"))
    config = evaluation_config(given)
    from sprc.retrieval.evaluate_checkpoint import validate  # heavy: torch

    validation, metrics = validate(config)
    print(f"{validation}; ranked: {config.benchmark.protocol}")
    if config.box_file is not None:
        print(f"also seen through the boxes of {config.box_file}")
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"  {name:<{width}}  {value:6.2f}")
    return metrics


def run() -> None:
    """The command `sprc-validate`."""
    run_main(main)


if __name__ == "__main__":
    run()
