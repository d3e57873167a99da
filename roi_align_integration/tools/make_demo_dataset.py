"""Make a small dataset in CIRR's layout: scenes of coloured shapes, captions that change one object, exact boxes."""

import argparse
import time

from sprc.core import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()  # while the packages below load

from sprc.core.command_line import HelpFormatter, positive_int, run_main, user_path
from sprc.core.places import REPOSITORY
from sprc.demo.dataset import DemoSettings, make_demo_dataset
from sprc.demo.scenes import DIFFICULTIES

DEFAULT_OUTPUT = REPOSITORY / "roi_align_integration" / "data" / "demo_dataset"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    defaults = DemoSettings()
    parser.add_argument("--output", type=user_path, default=DEFAULT_OUTPUT, help="folder of the dataset")
    for name, what in (
        ("images", "training images"),
        ("triplets", "training triplets"),
        ("val-images", "validation images"),
        ("val-triplets", "validation triplets"),
        ("test-images", "test images"),
        ("test-triplets", "test queries"),
    ):
        default = getattr(defaults, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=positive_int, default=default, help=what)
    parser.add_argument("--seed", type=int, default=defaults.seed, help="the same seed gives the same bytes")
    parser.add_argument(
        "--difficulty",
        choices=tuple(DIFFICULTIES),
        default=defaults.difficulty,
        help="objects, colours, noise, clutter",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Make the dataset and say what was made. Raises InputError as `make_demo_dataset`."""
    arguments = vars(build_parser().parse_args(argv))
    output = arguments.pop("output")
    settings, start = DemoSettings(**arguments), time.perf_counter()
    if not make_demo_dataset(output, settings):
        print(f"demo dataset is there: {output}")
        return
    sizes = ", ".join(f"{split} {images} images and {n} captions" for split, (images, n) in settings.sizes().items())
    print(f"demo dataset in {output}: {sizes}, in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    run_main(main)
