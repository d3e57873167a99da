"""The results of a search as a picture and as a page."""

import logging
from collections.abc import Sequence
from pathlib import Path

from sprc.boxes.drawing import save_png
from sprc.core.files import write_atomically
from sprc.report.heat_maps import HeatMap
from sprc.report.html import html_page
from sprc.report.pictures import Picture, Role
from sprc.report.regions import PhotoRegions
from sprc.report.sheets import ResultLine, SheetRow, contact_sheet
from sprc.retrieval.results import Result
from sprc.retrieval.retriever import Retriever

logger = logging.getLogger(__name__)


def write_files(row: SheetRow, files: dict[str, Path], found_by: str) -> None:
    """Write a query and its results as `png`, a picture, and as `html`, a page in one file: name -> path.

    `found_by` says what has searched where. Raises InputError if a file cannot be written.
    """
    for name, path in files.items():
        WRITERS[name](row, path, found_by)
        logger.info(f"written: {path}")


def write_png(row: SheetRow, path: Path, found_by: str) -> None:
    save_png(contact_sheet([row], "What was found", [found_by]), path)


def write_html(row: SheetRow, path: Path, found_by: str) -> None:
    write_atomically(path, html_page(row, found_by))


WRITERS = {"png": write_png, "html": write_html}


def search_row(
    retriever: Retriever, image: str | Path, sentence: str, results: Sequence[Result], regions: PhotoRegions
) -> SheetRow:
    """A query and its results, with heat maps and regions. Raises InputError for a photograph that has gone."""
    position = retriever.position_of(image)
    name = str(image) if position is None else retriever.gallery.names[position]
    reference = Picture(
        retriever.path_of(image),
        name,
        title="reference",
        role=Role.REFERENCE,
        regions=() if position is None else regions.of(name),
    )
    heats = [HeatMap(values, retriever.preprocess) for values in retriever.look(results)]
    found = [_picture(result, heat, regions) for result, heat in zip(results, heats, strict=True)]
    return SheetRow(reference, sentence, (ResultLine(tuple(found)),))


def _picture(result: Result, heat: HeatMap, regions: PhotoRegions) -> Picture:
    title, detail = f"{result.rank}", f"{result.score:.4f}"
    return Picture(result.path, result.name, title, detail, heat=heat, regions=regions.of(result.name))
