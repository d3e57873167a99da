"""What happens on a click: functions from what the page holds to what it shows next. Bad input is a message on it."""

import functools
import html
from collections.abc import Callable
from pathlib import Path

import gradio as gr
from PIL import Image

from sprc.core.errors import InputError
from sprc.report.page.desk import Desk, Listing
from sprc.report.page.pictures import LARGE, SMALL, draw_result, thumbnail
from sprc.report.page.turns import Session

# A parameter that a message names -> what the page calls it.
ON_PAGE = {"`top_k`": "the number of results", "`text`": "the field below the reference"}
NO_REFERENCE = '<span class="quiet">None yet: click on a photograph of the index, or upload one.</span>'


def on_page(message: str) -> str:
    """A message of library code in the words of the page, as HTML."""
    for parameter, words in ON_PAGE.items():
        message = message.replace(parameter, words)
    return html.escape(message[:1].upper() + message[1:] + ".")


def warn(error: InputError) -> None:
    gr.Warning(on_page(str(error)), duration=8)


def messages(callback: Callable) -> Callable:
    """The same callback, but for bad input: then the page says what is wrong, and stays as it is."""

    @functools.wraps(callback)
    def told(*values):
        try:
            return callback(*values)
        except InputError as error:
            warn(error)
            return gr.skip()

    return told


class Callbacks:
    """The page's callbacks. What they return is in the order of the outputs that `layout` gives them."""

    def __init__(self, desk: Desk):
        self.desk = desk

    def browse(self, part: str, number: int) -> tuple:
        """-> the listing, its thumbnails and its line, the buttons back and on."""
        listing = self.desk.listing(part or "", number)
        cells = [(thumbnail(self.desk.photograph(name).path), name) for name in listing.names]
        steps = gr.update(interactive=listing.number > 0), gr.update(interactive=listing.number + 1 < listing.pages)
        return listing, cells, str(listing), *steps

    def turn_page(self, step: int, part: str, listing: Listing) -> tuple:
        """`browse`, some pages on."""
        return self.browse(part, listing.number + step)

    @messages
    def pick(self, session: Session, event: gr.SelectData) -> tuple:
        """A photograph of the listing, by its caption, is the reference -> session, reference."""
        session = session.with_reference(self.desk.photograph(event.value["caption"]))
        return session, *self._reference(session)

    @messages
    def upload(self, path: str | None, session: Session) -> tuple:
        """A file is the reference -> session, reference, no file any more in the field for it."""
        if path is not None:
            session = session.with_reference(self.desk.upload(Path(path)))
        return session, *self._reference(session), None

    @messages
    def search(self, session: Session, sentence: str, count: float | None, heat: bool, boxes: bool) -> tuple:
        """-> session, answer."""
        return self._answer(self.desk.search(session, sentence, count), heat, boxes)

    def switch(self, session: Session, heat: bool, boxes: bool) -> tuple:
        """Heat maps or boxes come or go -> session, answer."""
        return self._answer(session, heat, boxes)

    def choose(self, session: Session, heat: bool, boxes: bool, event: gr.SelectData) -> tuple:
        """Another result is large -> session, large picture and its text."""
        session = session.choose(event.index)
        return session, *self._large(session, heat, boxes)

    @messages
    def use(self, session: Session) -> tuple:
        """The large result is the next reference -> session, reference, an empty sentence."""
        turn = session.turn
        if turn is not None:
            session = session.with_reference(self.desk.photograph(turn.results[session.chosen].name))
        return session, *self._reference(session), ""

    def go_back(self, session: Session, heat: bool, boxes: bool, event: gr.SelectData) -> tuple:
        """An earlier turn is shown -> session, answer, reference, sentence."""
        session = session.back_to(event.index)
        sentence = session.turn.sentence if session.turn else ""
        return *self._answer(session, heat, boxes), *self._reference(session), sentence

    def start_over(self) -> tuple:
        """-> session, answer, reference, sentence, all empty."""
        session = Session()
        return *self._answer(session, False, False), *self._reference(session), ""

    def _reference(self, session: Session) -> tuple[Image.Image | None, str]:
        reference = session.reference
        if reference is None:
            return None, NO_REFERENCE
        return thumbnail(reference.path, LARGE // 2), f"<b>{html.escape(reference.name)}</b>"

    def _answer(self, session: Session, heat: bool, boxes: bool) -> tuple:
        """-> session, hint, answer, history, results, large picture and its text."""
        if heat:
            session = self._looked(session)
        is_there = session.turn is not None
        history = gr.update(value=self._history(session), selected_index=session.shown if is_there else None)
        results = gr.update(value=self._results(session, heat, boxes), selected_index=session.chosen)
        shown = gr.update(visible=not is_there), gr.update(visible=is_there)
        return session, *shown, history, results, *self._large(session, heat, boxes)

    def _looked(self, session: Session) -> Session:
        """The session with the heat maps of its turn; if a photograph has gone, without them, and with a message."""
        try:
            return self.desk.look(session)
        except InputError as error:
            warn(error)
            return session

    def _history(self, session: Session) -> list[tuple[Image.Image, str]]:
        turns = enumerate(session.turns, start=1)
        return [(thumbnail(turn.reference.path), f"{number}. {turn.sentence}") for number, turn in turns]

    def _results(self, session: Session, heat: bool, boxes: bool) -> list[tuple[Image.Image, str]]:
        results = session.turn.results if session.turn else ()
        return [
            (self._picture(session, number, SMALL, heat, boxes), f"{result.rank} · {result.score:.4f}\n{result.name}")
            for number, result in enumerate(results)
        ]

    def _picture(self, session: Session, number: int, side: int, heat: bool, boxes: bool) -> Image.Image:
        turn = session.turn
        assert turn is not None
        result = turn.results[number]
        regions = self.desk.regions_of(result.name) if boxes and self.desk.regions_of else ()
        return draw_result(result, side, self.desk.heat_of(turn, number) if heat else None, regions)

    def _large(self, session: Session, heat: bool, boxes: bool) -> tuple[Image.Image | None, str]:
        if session.turn is None:
            return None, ""
        result = session.turn.results[session.chosen]
        width, height = result.size
        numbers = f"rank {result.rank} · score {result.score:.4f} · {width} × {height} pixels"
        text = f'<b>{html.escape(result.name)}</b><br><span class="quiet">{numbers}</span>'
        return self._picture(session, session.chosen, LARGE, heat, boxes), text
