"""Fine-tune SPRC for composed image retrieval: train, validate, save."""

import argparse
from pathlib import Path
from typing import Any

from sprc.core.command_line import HelpFormatter, hide_bars_of_other_ranks, run_main, user_path
from sprc.core.launch import any_rank
from sprc.core.options import add_flags, require_given
from sprc.data.options import CacheOptions
from sprc.retrieval.options import DataOptions, ModelOptions, RuntimeOptions
from sprc.training.config import (
    OptimisationOptions,
    OutputOptions,
    RegionOptions,
    TrainConfig,
    TrainingInputs,
)


def build_parser() -> argparse.ArgumentParser:
    """A flag for every setting of `TrainConfig`, and which run or file the settings are taken from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_flags(parser, "data", DataOptions)
    add_flags(parser, "feature cache", CacheOptions)
    add_flags(parser, "model", ModelOptions)
    add_flags(parser, "start", TrainingInputs)
    add_flags(parser, "optimisation", OptimisationOptions)
    add_flags(parser, "regions", RegionOptions)
    add_flags(parser, "validation and output", OutputOptions)
    add_flags(parser, "runtime", RuntimeOptions)
    again = parser.add_argument_group("settings of another run")
    again.add_argument(
        "--resume",
        metavar="RUN|auto",
        help="continue the run in this folder; auto: the last one in --output-folder with these settings and data, or"
        " a new one",
    )
    again.add_argument(
        "--config",
        type=user_path,
        metavar="FILE",
        help="the training_hyperparameters.json of a run, whose settings a new run has; flags win over it",
    )
    return parser


def parse_config(argv: list[str] | None = None) -> tuple[TrainConfig, Path | None]:
    """The configuration, and the folder of the run to continue, if any.

    A run that continues keeps its settings; a flag that is given and differs is an error, but for `FREE_TO_CHANGE`.
    """
    parser = build_parser()
    given: dict[str, Any] = vars(parser.parse_args(argv))
    resume, file = given.pop("resume"), given.pop("config")
    if file is not None:
        from sprc.training.config_file import read_settings

        given = read_settings(file) | given
    require_given(parser, given, ("dataset",))
    if resume is None:
        return TrainConfig(**given), None
    config = TrainConfig(**given) if resume == "auto" else None
    from sprc.training.resuming import find_run, named_run, resumed_config  # heavy: torch

    run_folder = named_run(resume) if config is None else find_run(config)
    if run_folder is not None:
        return resumed_config(run_folder, given), run_folder
    assert config is not None  # a run that is named is there
    return config, None


def main(argv: list[str] | None = None):
    """Train, validate and save as the flags say; returns the best epoch (`sprc.training.run_state.Best`).

    Raises InputError if a flag, a file or an entry is wrong, before training starts if it can be known.
    """
    hide_bars_of_other_ranks()
    config, resumed = parse_config(argv)
    from sprc.training.run import final_table, run_training  # heavy: torch, timm, transformers

    if config.loss_itm != TrainConfig.loss_itm and any_rank() == 0:
        print("note: blip2_cir_align_prompt has no image-text matching loss; --loss-itm changes nothing")
    best, folder = run_training(config, resumed)
    if any_rank() == 0:
        print(final_table(best, config, folder), flush=True)
    return best


def run() -> None:
    """The command `sprc-train`."""
    run_main(main, in_group=True)


if __name__ == "__main__":
    run()
