"""Serves the page of an index, and writes down every address beyond this machine that the process wants to reach.

python page_process.py INDEX BOX_FILE ADDRESSES
"""

import sys
from pathlib import Path

from lavis.datasets.region_boxes import load_boxes
from sprc.core.command_line import run_main
from sprc.report.page import serve_page
from sprc.retrieval.retriever import Retriever

LOCAL = ("127.0.0.1", "localhost", None)


def watch_addresses(path: Path) -> None:
    """Have `path` name whatever is looked up or connected to, but for this machine itself."""

    def note(event: str, values: tuple) -> None:
        host = None
        if event == "socket.getaddrinfo":
            host = values[0]
        elif event == "socket.connect" and isinstance(values[1], tuple):
            host = values[1][0]
        if host not in LOCAL:
            with path.open("a") as file:
                file.write(f"{event} {host}\n")

    path.touch()
    sys.addaudithook(note)


def main() -> None:
    index, box_file, addresses = map(Path, sys.argv[1:])
    watch_addresses(addresses)
    boxes = load_boxes(box_file)
    serve_page(Retriever.from_index(index, device="cpu"), 0, lambda name: boxes[Path(name).stem])


if __name__ == "__main__":
    run_main(main)
