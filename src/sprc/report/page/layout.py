"""The page's parts, and which callback each of them calls."""

import html
from collections.abc import Callable
from functools import partial

import gradio as gr

from sprc.data.image_files import IMAGE_SUFFIXES
from sprc.report.page.callbacks import NO_REFERENCE, Callbacks
from sprc.report.page.desk import Desk, Listing, RegionsOf
from sprc.report.page.turns import Session
from sprc.retrieval.retriever import Retriever

TITLE = "Search by a photograph and a sentence"
HINT = """<div id="hint-steps"><ol>
<li>Choose a reference: a photograph of the index, or a file of yours.</li>
<li>Write what is to be different, for example <i>the same dog, but on a beach</i>. Enter searches.</li>
<li>Click on a result to see it large, and take it as the next reference, as often as you like.</li>
</ol></div>"""
RESULTS = 10  # of a search, unless the visitor asks for another number
LONGEST_SENTENCE = 1000  # letters
FOCUS = "() => document.querySelector('#sentence textarea').focus()"
# In a narrow window the parts stand one below the other: bring one into sight that is not.
SHOW = """() => {{
  const part = document.getElementById('{0}');
  if (part && part.getBoundingClientRect().top > 0.8 * innerHeight) part.scrollIntoView({{behavior: 'smooth'}});
}}"""
HOUR, DAY = 3600, 24 * 3600


def build_page(retriever: Retriever, regions_of: RegionsOf | None = None) -> gr.Blocks:
    """The page of a retriever whose index is open. `regions_of` gives the boxes of a name; None: the page has none."""
    return Page(Desk(retriever, regions_of)).blocks


class Page:
    """The parts of the page; `blocks` is the whole of it."""

    def __init__(self, desk: Desk):
        self.desk, self.calls = desk, Callbacks(desk)
        with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(HOUR, DAY)) as self.blocks:
            self.session, self.listing = gr.State(Session()), gr.State(Listing())
            self._add_head()
            with gr.Row():
                with gr.Column(scale=4, min_width=320):
                    self._add_query()
                    self._add_sources()
                with gr.Column(scale=9, min_width=320):
                    self.hint = gr.HTML(HINT, elem_id="hint", padding=False)
                    with gr.Column(visible=False, elem_id="answer") as self.answer:
                        self._add_answer()
            self._connect()

    def _add_head(self) -> None:
        gallery = self.desk.retriever.gallery
        about = f"{len(gallery):,} photographs, searched with {html.escape(gallery.maker.model)}"
        gr.HTML(f"<h1>{TITLE}</h1><p>{about}</p>", elem_id="head", padding=False)

    def _add_query(self) -> None:
        gr.HTML("<h2>Reference</h2>", padding=False)
        self.picture = gr.Image(
            show_label=False, height=170, interactive=False, buttons=[], elem_id="reference", type="pil"
        )
        self.name = gr.HTML(NO_REFERENCE, elem_id="reference-name", padding=False)
        self.sentence = gr.Textbox(
            label="What is to be different?", placeholder="make it red, on a beach", lines=1, max_lines=4,
            max_length=LONGEST_SENTENCE, elem_id="sentence", autofocus=True,
        )  # fmt: skip
        with gr.Row(elem_id="go"):
            self.count = gr.Number(RESULTS, label="Results", precision=0, min_width=80, scale=1, elem_id="count")
            self.button = gr.Button("Search", variant="primary", scale=3, elem_id="search")

    def _add_sources(self) -> None:
        with gr.Tabs():
            with gr.Tab("From the index"):
                self.part = gr.Textbox(
                    label="Filter by name", placeholder="Filter by name", show_label=False, container=False,
                    elem_id="part",
                )  # fmt: skip
                self.cells = gr.Gallery(
                    show_label=False, allow_preview=False, object_fit="contain", buttons=[],
                    elem_id="index", elem_classes="cells", interactive=False, height="auto",
                )  # fmt: skip
                with gr.Row(elem_id="steps"):
                    self.back = gr.Button("‹ Back", size="sm", min_width=70, elem_id="back")
                    self.line = gr.HTML(elem_id="line", padding=False)
                    self.on = gr.Button("On ›", size="sm", min_width=70, elem_id="on")
            with gr.Tab("Upload"):
                self.file = gr.File(
                    label="A photograph of yours",
                    show_label=False,
                    file_types=list(IMAGE_SUFFIXES),
                    height=180,
                    elem_id="file",
                )

    def _add_answer(self) -> None:
        with gr.Row(elem_id="turns-head"):
            gr.HTML("<h2>Turns</h2>", padding=False)
            self.start_over = gr.Button("Start over", size="sm", scale=0, min_width=110, elem_id="start-over")
        self.history = gr.Gallery(
            show_label=False, allow_preview=False, object_fit="cover", buttons=[], interactive=False,
            elem_id="history", elem_classes="cells", height="auto", container=False,
        )  # fmt: skip
        with gr.Row(elem_id="switches"):
            gr.HTML("<h2>Results</h2>", padding=False)
            self.heat = gr.Checkbox(False, label="Where the model looks", container=False, elem_id="heat")
            has_boxes = self.desk.regions_of is not None
            self.boxes = gr.Checkbox(False, label="Boxes", container=False, visible=has_boxes, elem_id="boxes")
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                self.results = gr.Gallery(
                    show_label=False, allow_preview=False, object_fit="contain", buttons=[],
                    interactive=False, elem_id="results", elem_classes="cells", height="auto", container=False,
                )  # fmt: skip
            with gr.Column(scale=3, min_width=280, elem_id="detail"):
                self.large = gr.Image(show_label=False, interactive=False, buttons=["fullscreen"], type="pil",
                                      height=360, elem_id="large")  # fmt: skip
                self.text = gr.HTML(elem_id="text", padding=False)
                self.use = gr.Button("Use as the next reference", elem_id="use")

    def _connect(self) -> None:
        calls, switches = self.calls, [self.heat, self.boxes]
        reference, large = [self.picture, self.name], [self.large, self.text]
        answer = [self.session, self.hint, self.answer, self.history, self.results, *large]
        asked = [self.session, self.sentence, self.count, *switches]
        self._connect_listing()
        step(self.cells.select, calls.pick, [self.session], [self.session, *reference])
        step(self.file.upload, calls.upload, [self.file, self.session], [self.session, *reference, self.file])
        for event in (self.sentence.submit, self.button.click):
            found = step(event, calls.search, asked, answer, show_progress="full", show_progress_on=self.results)
            found.then(None, js=SHOW.format("answer"))
        for switch in switches:
            step(switch.input, calls.switch, [self.session, *switches], answer)
        chosen = step(self.results.select, calls.choose, [self.session, *switches], [self.session, *large])
        chosen.then(None, js=SHOW.format("detail"))
        using = step(self.use.click, calls.use, [self.session], [self.session, *reference, self.sentence])
        using.then(None, js=FOCUS)
        step(self.history.select, calls.go_back, [self.session, *switches], [*answer, *reference, self.sentence])
        step(self.start_over.click, calls.start_over, [], [*answer, *reference, self.sentence])

    def _connect_listing(self) -> None:
        calls, listed = self.calls, [self.listing, self.cells, self.line, self.back, self.on]
        browse, options = partial(calls.browse, number=0), {"concurrency_id": "listing"}
        step(self.blocks.load, browse, [self.part], listed, **options)
        step(self.part.change, browse, [self.part], listed, trigger_mode="always_last", **options)
        step(self.back.click, partial(calls.turn_page, -1), [self.part, self.listing], listed, **options)
        step(self.on.click, partial(calls.turn_page, 1), [self.part, self.listing], listed, **options)


def step(event: Callable, callback: Callable, inputs: list, outputs: list, **options):
    """Connect a callback. Those that change a session run one at a time, in the order in which the clicks came."""
    defaults = {"api_visibility": "private", "show_progress": "hidden", "concurrency_id": "session"}
    return event(callback, inputs, outputs, concurrency_limit=1, **defaults | options)
