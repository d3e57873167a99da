"""Evaluate a checkpoint on the validation split of CIRR or FashionIQ."""

import argparse
from pathlib import Path

from sprc.core.command_line import HelpFormatter, run_main
from sprc.retrieval.evaluation import (
    add_evaluation_flags,
    evaluation_config,
    evaluation_preprocess,
    load_evaluated,
    memory_cure,
)
from sprc.training.config import TrainConfig


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--dataset", required=True, help="CIRR or FashionIQ, in any case")
    add_evaluation_flags(parser)
    parser.add_argument(
        "--gallery", choices=("split", "captions"), default="split", help="FashionIQ: which images are ranked"
    )
    return parser


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print the metrics, one a line, and return them. Raises InputError where a flag or a file is wrong."""
    arguments = vars(build_parser().parse_args(argv))
    config = evaluation_config(arguments, arguments["dataset"])
    from sprc.core.machine_faults import explained  # heavy: torch

    with explained(memory_cure(config)):
        return validate(config, arguments["model_path"])


def validate(config: TrainConfig, model_path: Path) -> dict[str, float]:
    """As `main`, of settings."""
    from sprc.benchmarks.dataset_catalog import make_validation, open_galleries
    from sprc.data.feature_cache import use_feature_cache
    from sprc.data.image_check import check_images
    from sprc.training import engine

    galleries = open_galleries(config, evaluation_preprocess(config))
    check_images(*galleries.values())
    model, process_caption, runtime = load_evaluated(config, model_path)
    use_feature_cache(config, model, runtime.device, *galleries.values())
    validation = make_validation(config, galleries, process_caption)
    metrics = engine.evaluate(model, validation, config, runtime)
    print(f"{validation}; ranked: {config.protocol}")
    width = max(map(len, metrics))
    for name, value in metrics.items():
        print(f"  {name:<{width}}  {value:6.2f}")
    return metrics


if __name__ == "__main__":
    run_main(main)
