"""Say whether YOLO can make boxes here: ultralytics is installed, and its weights are in models/yolo."""

import argparse

from sprc.boxes.yolo import DEFAULT_WEIGHTS, import_ultralytics
from sprc.core.command_line import HelpFormatter, run_main
from sprc.core.errors import InputError


def main(argv: list[str] | None = None) -> None:
    """Say that ultralytics and its weights are here. Raises InputError if they are not; downloads nothing."""
    argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter).parse_args(argv)
    ultralytics = import_ultralytics()
    if not DEFAULT_WEIGHTS.is_file():
        raise InputError(f"no YOLO weights at {DEFAULT_WEIGHTS}")
    print(f"ultralytics {ultralytics.__version__}, {DEFAULT_WEIGHTS}")


if __name__ == "__main__":
    run_main(main)
