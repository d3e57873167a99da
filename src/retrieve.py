"""Search a folder of photographs with a reference image and a sentence that says what to change."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprc.core.command_line import HelpFormatter, positive_int, run_main, user_path
from sprc.core.errors import InputError, printable
from sprc.core.logs import show_logs
from sprc.core.options import add_flags
from sprc.retrieval.options import ImageOptions, ModelOptions, RuntimeOptions
from sprc.retrieval.search_options import PORT, EngineOptions, IndexOptions

if TYPE_CHECKING:
    from sprc.report.regions import PhotoRegions
    from sprc.retrieval.results import Result
    from sprc.retrieval.retriever import Retriever


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog=parser.prog)
    _add_index(commands)
    _add_search(commands)
    _add_page(commands)
    return parser


def _add_index(commands) -> None:
    index = commands.add_parser(
        "index",
        help="encode the photographs of a folder, or bring their index up to date",
        description="Encode all photographs below a folder. Run it again after they change: what is new or changed is"
        " encoded, and nothing else. After an interruption it continues.",
        formatter_class=HelpFormatter,
    )
    index.add_argument("photos", type=user_path, metavar="PHOTOS", help="folder of the photographs")
    index.add_argument("--model-path", type=user_path, required=True, metavar="FILE", help="checkpoint of a run")
    index.add_argument("--output", type=user_path, required=True, metavar="INDEX", help="folder of the index")
    add_flags(index, "photographs", ImageOptions)
    add_flags(index, "index", IndexOptions)
    add_flags(index, "model", ModelOptions)
    add_flags(index, "runtime", RuntimeOptions)


def _add_search(commands) -> None:
    search = commands.add_parser(
        "search", help="find the photographs that fit", description=__doc__, formatter_class=HelpFormatter
    )
    _add_opened_index(search)
    search.add_argument("--image", required=True, metavar="REF", help="the reference: a file, or a name in the index")
    search.add_argument("--text", required=True, help="the sentence: what is to be different")
    search.add_argument("--top-k", type=positive_int, default=10, help="how many results")
    search.add_argument("--keep-reference", action="store_true", help="let the reference itself be a result")
    output = search.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print JSON instead of a table")
    output.add_argument("--png", type=user_path, metavar="FILE", help="write a picture of the results")
    output.add_argument("--html", type=user_path, metavar="FILE", help="write a page of the results, in one file")


def _add_page(commands) -> None:
    page = commands.add_parser(
        "page", help="search in a browser", description="Search in a browser.", formatter_class=HelpFormatter
    )
    _add_opened_index(page)
    page.add_argument("--port", type=positive_int, default=PORT, help="of this machine, on 127.0.0.1")


def _add_opened_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", type=user_path, metavar="INDEX", help="a folder that the command index has made")
    parser.add_argument("--box-file", type=user_path, metavar="FILE", help="boxes to draw on the results")
    parser.add_argument("--photos", type=user_path, metavar="FOLDER", help="the photographs, if they have moved")
    parser.add_argument("--model-path", type=user_path, metavar="FILE", help="the checkpoint, if it has moved")
    add_flags(parser, "engine", EngineOptions)
    add_flags(parser, "runtime", RuntimeOptions)


def main(argv: list[str] | None = None) -> Any:
    """Run a command; `search` returns its results. Raises InputError if a flag or a file is wrong."""
    given = {name: value for name, value in vars(build_parser().parse_args(argv)).items() if value is not None}
    return {"index": make_index, "search": search, "page": show_page}[given.pop("command")](given)


def make_index(given: dict[str, Any]) -> None:
    photos, output, model_path = (given.pop(name) for name in ("photos", "output", "model_path"))
    from sprc.retrieval.retriever import Retriever  # heavy: torch

    print(Retriever.from_checkpoint(model_path, **given).index(photos, output))
    print(f"index: {output}")


def search(given: dict[str, Any]) -> "list[Result]":
    image, text, k, keep = (given.pop(name) for name in ("image", "text", "top_k", "keep_reference"))
    as_json = given.pop("json")
    files: dict[str, Path] = {name: given.pop(name) for name in ("png", "html") if name in given}
    require_suffixes(files)
    show_logs(on_stderr=as_json)
    retriever, regions = open_index(given)
    results = retriever.search(image, text, k, keep)
    print(json_of(image, text, results) if as_json else table_of(image, text, results))
    if files:
        from sprc.report.search_files import search_row, write_files

        write_files(search_row(retriever, image, text, results, regions), files, retriever.description)
    return results


def require_suffixes(files: dict[str, Path]) -> None:
    """Raise InputError for a file whose name says that it is of another kind."""
    for name, path in files.items():
        if path.suffix.lower() != f".{name}":
            raise InputError(f"`{name}` {path}: give a name that ends in .{name}")


def open_index(given: dict[str, Any]) -> "tuple[Retriever, PhotoRegions]":
    """The retriever of an index, and the boxes of its photographs; what is left of `given` are settings."""
    index, box_file, photos = given.pop("index"), given.pop("box_file", None), given.pop("photos", None)
    from sprc.report.regions import PhotoRegions
    from sprc.retrieval.retriever import Retriever  # heavy: torch

    retriever = Retriever.from_index(index, photos, **given)
    return retriever, PhotoRegions(box_file, retriever.gallery.names)


def show_page(given: dict[str, Any]) -> None:
    port = given.pop("port")
    from sprc.report.page import serve_page

    retriever, regions = open_index(given)
    serve_page(retriever, port, regions.of if regions.boxes else None)


def table_of(image: str, text: str, results: "list[Result]") -> str:
    lines = [f'{image} + "{text}"', "rank   score  image"]
    lines += [f"{result.rank:>4}  {result.score:6.4f}  {result.name}" for result in results]
    return "\n".join(map(printable, lines))


def json_of(image: str, text: str, results: "list[Result]") -> str:
    answer = {"image": image, "text": text, "results": [result.as_dict() for result in results]}
    return json.dumps(answer, indent=2)  # in ASCII, which every terminal and pipe has


def run() -> None:
    """The command `sprc-retrieve`."""
    run_main(main)


if __name__ == "__main__":
    run()
