"""Draw what a checkpoint finds on the validation split: queries it answers best and worst, or wins over another."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sprc.core.command_line import HelpFormatter, non_negative_int, positive_int, require_png, run_main, user_path
from sprc.core.errors import InputError
from sprc.core.options import require_given
from sprc.core.places import REPOSITORY
from sprc.retrieval.checkpoint_run import evaluation_config
from sprc.retrieval.options import add_evaluation_flags

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_OUTPUT = REPOSITORY / "roi_align_integration" / "data" / "retrieval.png"
DEFAULT_KINDS = ("best", "worst", "random")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_evaluation_flags(parser)
    sheet = parser.add_argument_group("sheet")
    sheet.add_argument(
        "--kind",
        nargs="+",
        choices=(*DEFAULT_KINDS, "mixed"),
        help="one sheet each; mixed has queries with the target among the results, and without (default: the others)",
    )
    sheet.add_argument("--against", type=user_path, metavar="CHECKPOINT", help="queries won and lost to this one")
    sheet.add_argument("--queries", type=positive_int, default=8, help="on a sheet, at most")
    sheet.add_argument("--top-k", type=positive_int, default=5, help="results of each query")
    sheet.add_argument("--seed", type=non_negative_int, default=0, help="of random and mixed")
    sheet.add_argument("--heat-maps", action="store_true", help="show where the token that gives a score looks")
    sheet.add_argument(
        "--output", type=user_path, default=DEFAULT_OUTPUT, help="PNG; several sheets add their kind to the name"
    )
    return parser


def main(argv: list[str] | None = None) -> list[Path]:
    """Write the sheets and print a summary; returns their paths. Raises InputError if a flag or a file is wrong."""
    parser = build_parser()
    args = parser.parse_args(argv)
    given = vars(args)
    chosen = {name: given.pop(name) for name in ("kind", "against", "output")}
    sheet = {name: given.pop(name) for name in ("queries", "top_k", "seed", "heat_maps")}
    require_given(parser, given, ("dataset", "model_path"))
    check_flags(**chosen)
    config = evaluation_config(given)
    other = evaluation_config(given | {"model_path": chosen["against"]}) if chosen["against"] else None
    from sprc.report.failures import SheetOptions, comparison_sheets, validation_sheets  # heavy: torch

    if other is None:
        sheets, summary = validation_sheets(config, chosen["kind"] or DEFAULT_KINDS, SheetOptions(**sheet))
    else:
        sheets, summary = comparison_sheets(config, other, SheetOptions(**sheet))
    print("\n".join(summary))
    if not sheets:
        print("both checkpoints rank every target alike: there is nothing to draw")
    return [
        write(image, place_of(kind, chosen["output"], other is None and len(sheets) == 1))
        for kind, image in sheets.items()
    ]


def check_flags(kind: list[str] | None, against: Path | None, output: Path) -> None:
    """Raise InputError for flags that do not go together."""
    require_png(output, "a sheet")
    if against is not None and kind is not None:
        raise InputError("--kind has no effect with --against, which draws queries won and lost: give one of them")
    if against is not None and not against.is_file():
        raise InputError(f"no checkpoint at {against}: give the path of a .pt file as --against")


def place_of(kind: str, output: Path, is_alone: bool) -> Path:
    """The file of a sheet."""
    return output if is_alone else output.with_name(f"{output.stem}_{kind}{output.suffix}")


def write(sheet: "Image.Image", path: Path) -> Path:
    from sprc.boxes.drawing import save_png  # heavy: torch

    save_png(sheet, path)
    print(f"sheet {path}")
    return path


if __name__ == "__main__":
    run_main(main)
