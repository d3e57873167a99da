"""Write the two files that the CIRR test server takes, and check them."""

import argparse
from pathlib import Path

from sprc.core.command_line import HelpFormatter, run_main, user_path
from sprc.core.errors import InputError
from sprc.core.places import REPOSITORY
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
    add_evaluation_flags(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output-folder", type=user_path, default=REPOSITORY / "submission" / "CIRR", help="where the files go"
    )
    output.add_argument(
        "--rerank", nargs="?", const="true", metavar="BOOL", help="refused but for false: there is no re-ranking model"
    )
    return parser


def main(argv: list[str] | None = None) -> list[Path]:
    """Write and check both files; returns their paths. Raises InputError where a flag or a file is wrong."""
    arguments = vars(build_parser().parse_args(argv))
    if arguments["rerank"] not in (None, "False", "false", "0", "no"):
        raise InputError("--rerank: this fork has no re-ranking model; leave the flag out")
    folder = arguments.pop("output_folder")
    config = evaluation_config(arguments)
    from sprc.core.machine_faults import explained  # heavy: torch

    with explained(memory_cure(config)):
        return submit(config, arguments["model_path"], folder)


def submit(config: TrainConfig, model_path: Path, folder: Path) -> list[Path]:
    """As `main`, of settings."""
    from data_utils import CIRRDataset
    from sprc.benchmarks.retrieval_task import cirr_test_task
    from sprc.data.feature_cache import use_feature_cache
    from sprc.data.image_check import check_images
    from sprc.training import engine

    gallery = CIRRDataset("test1", "classic", evaluation_preprocess(config), data_path=config.data_path)
    check_images(gallery)
    model, process_caption, runtime = load_evaluated(config, model_path)
    use_feature_cache(config, model, runtime.device, gallery)
    scores = engine.score_queries(model, cirr_test_task(gallery, process_caption), config, runtime)
    return [
        write_checked(metric, scores, gallery, folder / config.blip_model_name)
        for metric in ("recall", "recall_subset")
    ]


def write_checked(metric: str, scores, gallery, place: Path) -> Path:
    """Rank, build, check and write one file; `place` is the folder and, as its last part, the name of the run."""
    from sprc.benchmarks.ranking import top_group_names, top_names
    from sprc.benchmarks.submission import (
        NAMES_PER_PAIR,
        build_submission,
        check_submission,
        submission_path,
        write_submission,
    )

    entries, k = gallery.triplets, NAMES_PER_PAIR[metric]
    references = [entry["reference"] for entry in entries]
    if metric == "recall":
        names = top_names(scores, gallery.names, k, references)
    else:
        names = top_group_names(scores, gallery.names, [e["img_set"]["members"] for e in entries], references, k)
    submission = build_submission(metric, [entry["pairid"] for entry in entries], names)
    check_submission(submission, entries, k, gallery.names)
    path = submission_path(metric, place.name, place.parent)
    write_submission(path, submission)
    print(f"{path}: {len(entries)} pairs with {k} names each, checked")
    return path


if __name__ == "__main__":
    run_main(main)
