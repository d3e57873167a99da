"""Find the weights and the vocabulary of a backbone, download what is missing, and say where they are."""

import argparse

from sprc.core.command_line import HelpFormatter, run_main


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--backbone", default="pretrain", help="pretrain, pretrain_vitL, or a model's YAML file")
    parser.add_argument("--weights", metavar="PATH", help="look here instead of the default places")
    parser.add_argument("--no-download", action="store_true", help="only look; status 2 if something is missing")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print the path of each file. Raises InputError with what is missing, its source and its place."""
    args = build_parser().parse_args(argv)
    from lavis.models.model_config import load_config  # heavy: torch, transformers
    from lavis.models.tokenizer import find_vocabulary
    from lavis.models.weight_sources import find_weights

    config = load_config(args.backbone)
    files = find_weights(args.weights, config, download=not args.no_download)
    print(f"weights: {files.main if files else 'random'}")
    if files and files.vision:
        print(f"vision encoder: {files.vision}")
    print(f"vocabulary: {find_vocabulary(config.tokenizer, download=not args.no_download)}")


if __name__ == "__main__":
    run_main(main)
