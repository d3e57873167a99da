"""Evaluate a checkpoint on the validation split."""

import argparse

from evaluation_run import add_evaluation_flags, evaluation_config, score_split
from utils import HelpFormatter, run_main


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--dataset", required=True, help="CIRR, in any case")
    add_evaluation_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print the metrics, one a line, and return them. Raises InputError where a flag or a file is wrong."""
    arguments = vars(build_parser().parse_args(argv))
    config = evaluation_config(arguments, arguments["dataset"])
    from retrieval_task import cirr_task  # heavy: torch

    scores, task, gallery = score_split(config, arguments["model_path"], "val", cirr_task)
    metrics = task.metrics(scores)
    print(f"CIRR val: {len(scores)} queries, {len(gallery)} images")
    for name, value in metrics.items():
        print(f"  {name:<18}  {value:6.2f}")
    return metrics


if __name__ == "__main__":
    run_main(main)
