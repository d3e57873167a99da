"""Fine-tune SPRC for composed image retrieval: train, validate, save."""

import argparse
from dataclasses import fields
from pathlib import Path

from sprc.core.command_line import HelpFormatter, add_cache_flags, run_main, silence_all_but_rank_0, user_path
from sprc.training.config import REGION_WEIGHTS, TrainConfig

DEFAULTS = {f.name: f.default for f in fields(TrainConfig)}


def build_parser() -> argparse.ArgumentParser:
    """Every flag stores under the name of a field of `TrainConfig`, which holds its default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    _add_data_flags(parser.add_argument_group("data"))
    _add_model_flags(parser.add_argument_group("model"))
    _add_training_flags(parser.add_argument_group("training"))
    _add_region_flags(parser.add_argument_group("regions"))
    _add_output_flags(parser.add_argument_group("validation and output"))
    parser.set_defaults(**{name: value for name, value in DEFAULTS.items() if name != "dataset"})
    parser.set_defaults(resume=None)
    return parser


def _add_data_flags(group) -> None:
    group.add_argument("--dataset", required=True, help="CIRR or FashionIQ, in any case")
    group.add_argument(
        "--data-path", type=user_path, help="folder of the dataset (default: cirr_dataset or fashionIQ_dataset, here)"
    )
    group.add_argument("--transform", choices=("targetpad", "squarepad"), help="how an image is padded")
    group.add_argument("--target-ratio", type=float, help="targetpad: longer images are padded to this ratio")
    group.add_argument("--num-workers", type=int, help="processes that load images")
    add_cache_flags(group)
    group.add_argument("--max-triplets", type=int, help="train on the first so many triplets (default: all)")


def _add_model_flags(group) -> None:
    group.add_argument("--blip-model-name", help="registered name of the model")
    group.add_argument("--backbone", help="pretrain, pretrain_vitL, tiny, or the path of a model's YAML file")
    group.add_argument(
        "--weights",
        metavar="PATH|random",
        help="initial weights: a file or folder in any format of models/README.md (default: $SPRC_WEIGHTS, else what is"
        " in models/weights, a cache, or can be downloaded; tiny: random)",
    )
    group.add_argument("--drop-region-proj", action="store_true", help="leave out a region_proj of another shape")


def _add_training_flags(group) -> None:
    group.add_argument(
        "--num-epochs",
        type=int,
        help="epochs (default: CIRR 50, FashionIQ 30); with --resume how far to go, while the plan stays the run's",
    )
    group.add_argument(
        "--schedule-epochs",
        type=int,
        help="epochs that the learning rate is planned for (default: CIRR 80, or the epochs if they are more; FashionIQ"
        " the epochs); with --resume the rate follows a new plan from there",
    )
    group.add_argument(
        "--warmup",
        type=float,
        metavar="PART",
        help="part of the schedule in which the learning rate rises (default: CIRR 1/50; FashionIQ 1.5 epochs)",
    )
    group.add_argument("--batch-size", type=int, help="triplets in a step, of each process")
    group.add_argument(
        "--micro-batch",
        type=int,
        metavar="N",
        help="compute a step N triplets at a time, with the negatives of the whole batch: less memory, the same"
        " gradients, and a second forward pass",
    )
    group.add_argument(
        "--compile", action="store_true", help="compile the model with torch.compile: needs a C++ compiler"
    )
    group.add_argument("--learning-rate", type=float, help="peak of the schedule (default: CIRR 1e-5, FashionIQ 2e-5)")
    group.add_argument(
        "--loss-rtc", type=float, help="weight of the prompted text's loss (default: CIRR 0.4, FashionIQ 1)"
    )
    group.add_argument(
        "--loss-align", type=float, help="weight of the prompts' alignment (default: CIRR 0.4, FashionIQ 1)"
    )
    group.add_argument("--loss-itm", type=float, help="accepted as upstream accepts it; the model has no such loss")
    group.add_argument("--seed", type=int, help="seed of everything random")
    group.add_argument("--device", help="auto, cpu, cuda or cuda:N; auto takes CUDA where there is one")
    group.add_argument(
        "--precision",
        choices=("auto", "fp16", "bf16", "fp32"),
        help="autocast; auto is bf16 on CUDA, or fp16 where it has no bf16, and fp32 on the CPU and in validation",
    )


def _add_region_flags(group) -> None:
    group.add_argument("--use-region-loss", action="store_true", help="add a region-level contrastive loss")
    group.add_argument("--box-file", type=user_path, help="JSON file with the boxes of the training images")
    group.add_argument(
        "--region-objective",
        choices=tuple(REGION_WEIGHTS),
        help="pairs: regions of reference and target, one to one; tokens: target regions find their image through the"
        " target tokens; query: the query finds the best region of its target; compose: target regions find the query"
        " that reference and sentence are composed to; both: tokens and compose, half each",
    )
    group.add_argument(
        "--loss-region",
        type=float,
        help="weight of the region loss, constant (default: the objective's own: compose, tokens and query 0.5,"
        " falling to 0 at half time; both 0.5; pairs 0.1)",
    )
    group.add_argument(
        "--loss-region-until",
        type=float,
        metavar="PART",
        help="with --loss-region: its weight falls linearly to 0 at this part of the training (default: constant)",
    )
    group.add_argument("--max-regions", type=int, help="most regions of an image, the largest first")


def _add_output_flags(group) -> None:
    group.add_argument(
        "--gallery",
        choices=("split", "captions"),
        help="FashionIQ: rank every image of the split list, or only those that captions name",
    )
    group.add_argument("--validation-frequency", type=int, metavar="N", help="validate in every N-th epoch")
    group.add_argument("--save-training", action="store_true", help="keep the last epoch's model: tuned_clip_last.pt")
    group.add_argument("--save-best", action="store_true", help="keep the best epoch's model")
    group.add_argument("--save-memory", action="store_true", help="keep the gallery's features in CPU memory")
    group.add_argument("--memory-mib", type=float, help="bound on the ranking's temporary memory, in MiB")
    group.add_argument(
        "--save-every", metavar="N|Nm|epoch", help="save the state of the run every N steps, N minutes, or epoch"
    )
    group.add_argument(
        "--resume",
        metavar="RUN|auto",
        help="continue the run in this folder; auto: the last one in --output-folder with these settings and data, or"
        " a new one",
    )
    group.add_argument("--output-folder", type=user_path, help="where the run's folder is made")


def parse_config(argv: list[str] | None = None) -> tuple[TrainConfig, Path | None]:
    """The configuration, and the folder of the run to go on with, if any.

    A run that goes on keeps its settings; a flag that is given and differs is an error, but for `FREE_TO_CHANGE`.
    """
    settings = vars(build_parser().parse_args(argv))
    resume = settings.pop("resume")
    if resume is None:
        return TrainConfig(**settings), None
    from sprc.training.resuming import find_run, named_run, resumed_config  # heavy: torch

    config = TrainConfig(**settings) if resume == "auto" else None
    run_folder = find_run(config) if resume == "auto" else named_run(resume)
    return (config, None) if run_folder is None else (resumed_config(run_folder, given_flags(argv)), run_folder)


def given_flags(argv: list[str] | None) -> dict:
    """The settings whose flags stand on the command line."""
    parser = build_parser()
    parser._defaults.clear()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return {name: value for name, value in vars(parser.parse_args(argv)).items() if name != "resume"}


def main(argv: list[str] | None = None):
    """Train, validate and save as the flags say; returns the best epoch (`sprc.training.engine.Best`).

    Raises InputError where a flag, a file or an entry is wrong, before training starts where it can be known.
    """
    silence_all_but_rank_0()
    config, resumed = parse_config(argv)
    from sprc.training.run import run_training  # heavy: torch, timm, transformers

    if config.loss_itm != DEFAULTS["loss_itm"]:
        print("note: blip2_cir_align_prompt has no image-text matching loss; --loss-itm changes nothing")
    return run_training(config, resumed)


if __name__ == "__main__":
    run_main(main, in_group=True)
