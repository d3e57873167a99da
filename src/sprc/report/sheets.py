"""Contact sheets: one row for each query, with its sentence, its reference image, its target, and the images found."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from sprc.boxes.drawing import blank_sheet, bounded
from sprc.report.fonts import font_for, plain, shorten, wrap
from sprc.report.pictures import CELL, GREY, INK, SIDE, Picture, draw_cell

MARGIN, GAP, BLOCK_GAP = 28, 16, 44  # pixels around the sheet, between cells, and before the results
MOST_ACROSS = 8  # results beside each other; more go on below them
SENTENCE_LINE, HEADING_LINE = 26, 24  # pixels of height
MOST_LINES = 3  # of a sentence, the title, or a note
RULE = "#e2e5e9"
FEWER = "draw fewer queries, or fewer results of each"


@dataclass(frozen=True)
class ResultLine:
    """Images that were found, best first, under a heading if there is one: who found them."""

    pictures: tuple[Picture, ...]
    heading: str = ""


@dataclass(frozen=True)
class SheetRow:
    """A query: `target` is None where it is not known; `note` stands to the right of the sentence."""

    reference: Picture
    sentence: str
    results: tuple[ResultLine, ...]
    target: Picture | None = None
    note: str = ""


def contact_sheet(rows: Sequence[SheetRow], title: str, notes: Sequence[str] = ()) -> Image.Image:
    """The rows below each other, under a title and notes to all of them: RGB, readable at its own size.

    Raises InputError for an image that cannot be read, by name, and for a sheet larger than an image may be.
    """
    layout = _Layout.of(rows)
    panels = bounded(_panels(rows, title, notes, layout), FEWER)
    sheet = blank_sheet(layout.width, sum(panel.height for panel in panels) + MARGIN - GAP, FEWER)
    top = 0
    for panel in panels:
        sheet.paste(panel, (0, top))
        top += panel.height
    return sheet


@dataclass(frozen=True)
class _Layout:
    """What all rows share: `before` cells stand left of the results, of which `across` stand beside each other."""

    before: int
    across: int

    @classmethod
    def of(cls, rows: Sequence[SheetRow]) -> "_Layout":
        found = [len(line.pictures) for row in rows for line in row.results]
        return cls(1 + any(row.target is not None for row in rows), min(MOST_ACROSS, max(found, default=1)))

    @property
    def results_left(self) -> int:
        return MARGIN + self.before * (SIDE + GAP) - GAP + BLOCK_GAP

    @property
    def width(self) -> int:
        return self.results_left + self.across * (SIDE + GAP) - GAP + MARGIN

    @property
    def room(self) -> int:
        """Between the margins."""
        return self.width - 2 * MARGIN


def _panels(rows: Sequence[SheetRow], title: str, notes: Sequence[str], layout: _Layout) -> Iterator[Image.Image]:
    """The parts of a sheet from top to bottom, each as wide as the sheet."""
    yield _header(plain(title), [*map(plain, notes)], layout)
    for row in rows:
        yield _sentence(plain(row.sentence), plain(row.note), layout)
        yield _cells(row, layout)


def _header(title: str, notes: Sequence[str], layout: _Layout) -> Image.Image:
    texts = [
        (title, font_for(title, 24, bold=True), INK, 34),
        *((note, font_for(note, 14), GREY, 22) for note in notes),
    ]
    lines = [
        (line, font, colour, height)
        for text, font, colour, height in texts
        for line in wrap(text, font, layout.room, MOST_LINES)
    ]
    panel = Image.new("RGB", (layout.width, MARGIN + sum(height for *_, height in lines) + 10), "white")
    draw, bottom = ImageDraw.Draw(panel), MARGIN - 6
    for text, font, colour, height in lines:
        bottom += height
        draw.text((MARGIN, bottom), text, fill=colour, font=font, anchor="ls")
    return panel


def _sentence(sentence: str, note: str, layout: _Layout) -> Image.Image:
    """A rule, below it the sentence, and the note at the right edge."""
    font, small = font_for(sentence, 18), font_for(note, 14)
    note = shorten(note, small, layout.room / 2)
    lines = wrap(sentence, font, layout.room - small.getlength(note) - BLOCK_GAP, MOST_LINES)
    panel = Image.new("RGB", (layout.width, 16 + SENTENCE_LINE * max(1, len(lines)) + 14), "white")
    draw = ImageDraw.Draw(panel)
    draw.line([(MARGIN, 0), (layout.width - MARGIN - 1, 0)], fill=RULE)
    for number, line in enumerate(lines, start=1):
        draw.text((MARGIN, 12 + SENTENCE_LINE * number), line, fill=INK, font=font, anchor="ls")
    draw.text((layout.width - MARGIN, 12 + SENTENCE_LINE), note, fill=GREY, font=small, anchor="rs")
    return panel


def _cells(row: SheetRow, layout: _Layout) -> Image.Image:
    """The reference and the target, a rule, and the lines of results."""
    lines = [part for line in row.results for part in _parts(line, layout.across)]
    heights = [(HEADING_LINE if line.heading else 0) + CELL[1] + GAP for line in lines]
    first = HEADING_LINE if lines and lines[0].heading else 0
    panel = Image.new("RGB", (layout.width, max(first + CELL[1] + GAP, sum(heights))), "white")
    before = (row.reference,) if row.target is None else (row.reference, row.target)
    _put_cells(panel, before, MARGIN, first)
    rule = layout.results_left - BLOCK_GAP // 2
    ImageDraw.Draw(panel).line([(rule, 0), (rule, panel.height - GAP - 8)], fill=RULE)
    top = 0
    for line, height in zip(lines, heights, strict=True):
        _put_line(panel, line, (layout.results_left, top), layout)
        top += height
    return panel


def _parts(line: ResultLine, across: int) -> Iterator[ResultLine]:
    """The line in parts that fit beside each other; the first has the heading."""
    for first in range(0, len(line.pictures), across):
        yield ResultLine(line.pictures[first : first + across], "" if first else plain(line.heading))


def _put_line(panel: Image.Image, line: ResultLine, place: tuple[int, int], layout: _Layout) -> None:
    left, top = place
    if line.heading:
        font = font_for(line.heading, 14, bold=True)
        text = shorten(line.heading, font, layout.width - MARGIN - left)
        ImageDraw.Draw(panel).text((left, top + 12), text, fill=INK, font=font, anchor="ls")
        top += HEADING_LINE
    _put_cells(panel, line.pictures, left, top)


def _put_cells(panel: Image.Image, pictures: Sequence[Picture], left: int, top: int) -> None:
    for number, picture in enumerate(pictures):
        panel.paste(draw_cell(picture), (left + number * (SIDE + GAP), top))
