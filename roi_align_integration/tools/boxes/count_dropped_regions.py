"""How many boxes of a box file are too small in the input frame, or outside of it, by pipeline and image size."""

import argparse
import re

from lavis.datasets.region_boxes import load_boxes
from sprc.core.command_line import HelpFormatter, run_main, user_path

SIZES = ("500x500", "500x375", "375x500", "640x360", "360x640", "1000x400")


def image_size(text: str) -> tuple[int, int]:
    """An argparse type: `WIDTHxHEIGHT` in pixels."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"write WIDTHxHEIGHT, not {text!r}")
    return int(match[1]), int(match[2])


def main(argv: list[str] | None = None) -> dict[tuple[str, tuple[int, int]], float]:
    """Print and return the share in percent, as if every image had that size. Raises InputError for a wrong file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--box-file", type=user_path, required=True, help="JSON file of the boxes")
    parser.add_argument("--sizes", type=image_size, nargs="+", default=list(map(image_size, SIZES)), metavar="WxH",
                        help="sizes of the raw images, in pixels")  # fmt: skip
    args = parser.parse_args(argv)
    from sprc.data.preprocess import build_preprocess  # heavy: torch

    boxes = [region.box for regions in load_boxes(args.box_file).values() for region in regions]
    shares = {}
    print(f"{len(boxes)} boxes; dropped, in percent:")
    for size in args.sizes:
        for name in ("targetpad", "squarepad"):
            dropped = build_preprocess(name).move_boxes(boxes, *size).dropped
            shares[name, size] = 100 * dropped / max(1, len(boxes))
        row = ", ".join(f"{name} {shares[name, size]:.2f}" for name in ("targetpad", "squarepad"))
        print(f"  {size[0]}x{size[1]}: {row}")
    return shares


if __name__ == "__main__":
    run_main(main)
