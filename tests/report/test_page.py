"""The search page without a browser: what its callbacks answer, and how it is served."""

import os
import signal
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason='the page needs gradio: pip install -e ".[page]"')

from page_index import make_index, query_that_finds

from lavis.datasets.region_boxes import Region
from sprc.core.errors import InputError
from sprc.report.page import server
from sprc.report.page.callbacks import Callbacks, on_page
from sprc.report.page.desk import LISTED, MOST_RESULTS, Desk, Listing
from sprc.report.page.layout import build_page
from sprc.report.page.turns import Reference, Session
from sprc.retrieval.retriever import Retriever

BOX = Region((0.25, 0.25, 0.75, 0.75))


@pytest.fixture(scope="module")
def retriever(demo, small_yaml, tmp_path_factory) -> Retriever:
    return make_index(demo, small_yaml, tmp_path_factory.mktemp("page"))


@pytest.fixture
def desk(retriever) -> Desk:
    return Desk(retriever, lambda name: [BOX])


@pytest.fixture
def calls(desk) -> Callbacks:
    return Callbacks(desk)


@pytest.fixture
def asked(desk, demo) -> tuple[Session, str]:
    """A session whose reference is chosen, and a sentence."""
    query, _ = query_that_finds(desk.retriever, demo)
    return Session().with_reference(desk.photograph(query.reference)), query.sentence


def clicked(index: int, caption: str = "") -> SimpleNamespace:
    """What Gradio says of a click on a cell."""
    return SimpleNamespace(index=index, value={"caption": caption})


def captions(gallery) -> list[str]:
    """Of a gallery, or of its update."""
    cells = gallery["value"] if isinstance(gallery, dict) else gallery
    return [caption for _, caption in cells]


def differ(one: Image.Image, other: Image.Image) -> bool:
    return not np.array_equal(np.asarray(one), np.asarray(other))


def test_a_search_shows_what_the_retriever_finds(calls, asked):
    session, sentence = asked
    answer = calls.search(session, sentence, 5, False, False)
    expected = calls.desk.retriever.search(session.reference.path, sentence, 5)
    after, hint, part, history, results, large, text = answer
    assert list(after.turn.results) == expected
    assert captions(results) == [f"{r.rank} · {r.score:.4f}\n{r.name}" for r in expected]
    assert (hint["visible"], part["visible"]) == (False, True)
    assert captions(history) == [f"1. {sentence}"]
    assert expected[0].name in text
    assert max(large.size) <= 900


def test_heat_maps_and_boxes_are_drawn_where_they_belong(calls, asked):
    from sprc.data.images import open_small
    from sprc.report.heat_maps import HeatMap, draw_heat_map

    session = calls.search(*asked, 3, False, False)[0]
    plain, boxed = (calls.switch(session, False, boxes) for boxes in (False, True))
    looked = calls.switch(session, True, False)
    result = session.turn.results[0]
    maps = calls.desk.retriever.look(session.turn.results)
    raw = open_small(result.path, 900)
    heat = draw_heat_map(raw, HeatMap(maps[0], calls.desk.retriever.preprocess), result.size)
    assert not differ(plain[5], raw)
    assert not differ(looked[5], heat)
    assert differ(looked[5], raw)
    changed = (np.asarray(boxed[5]) != np.asarray(raw)).any(axis=2)
    assert changed[raw.height // 4 + 1, raw.width // 2]
    assert not changed[: raw.height // 8].any()
    assert len(looked[0].turn.maps) == 3 and session.turn.maps == ()


def test_maps_are_computed_once(calls, asked, monkeypatch):
    session = calls.search(*asked, 3, True, False)[0]
    monkeypatch.setattr(calls.desk.retriever, "look", lambda results: pytest.fail("a second time"))
    calls.switch(session, True, True)


def test_a_result_becomes_the_reference_of_the_next_turn(calls, asked):
    session = calls.search(*asked, 5, False, False)[0]
    session, _, text = calls.choose(session, False, False, clicked(2))
    assert session.turn.results[2].name in text
    session, picture, name, sentence = calls.use(session)
    assert session.reference.name == session.turn.results[2].name
    assert session.reference.name in name and picture is not None and sentence == ""
    after = calls.search(session, "make it blue", 4, False, False)[0]
    expected = calls.desk.retriever.search(session.reference.name, "make it blue", 4)
    assert list(after.turn.results) == expected
    assert [turn.sentence for turn in after.turns] == [asked[1], "make it blue"]


def test_going_back_shows_the_turn_and_keeps_the_later_ones(calls, asked):
    first = calls.search(*asked, 5, False, False)[0]
    second = calls.search(calls.use(first)[0], "make it blue", 4, False, False)[0]
    session, _, _, history, results, _, _, _, name, sentence = calls.go_back(second, False, False, clicked(0))
    assert captions(results) == captions(calls.switch(first, False, False)[4])
    assert sentence == asked[1] and asked[0].reference.name in name
    assert session.reference == asked[0].reference
    assert len(session.turns) == 2 and history["selected_index"] == 0
    third = calls.search(session, "make it green", 2, False, False)[0]
    assert [turn.sentence for turn in third.turns] == [asked[1], "make it blue", "make it green"]
    assert len(first.turns) == 1  # what was before has not changed


def test_clicks_beyond_what_is_there_change_nothing(calls, asked):
    session = calls.search(*asked, 2, False, False)[0]
    for index in (-1, 2, 99):
        assert calls.choose(session, False, False, clicked(index))[0] == session
    assert calls.go_back(session, False, False, clicked(7))[0] == session
    assert calls.use(Session())[0] == Session()


def test_starting_over_forgets_the_turns(calls, asked):
    session, hint, part, *_ = calls.start_over()
    assert session == Session()
    assert (hint["visible"], part["visible"]) == (True, False)


@pytest.mark.parametrize(
    "sentence, count, said",
    [
        ("  ", 5, "sentence is empty: write in the field below the reference"),
        ("red", None, f"number of results must be from 1 to {MOST_RESULTS}"),
        ("red", MOST_RESULTS + 1, f"number of results must be from 1 to {MOST_RESULTS}"),
        ("red", 18, "number of results is 18: the index has 17 photographs, without the reference"),
    ],
)
def test_bad_input_is_a_message(calls, asked, sentence, count, said):
    with pytest.warns(UserWarning, match=said):
        answer = calls.search(asked[0], sentence, count, False, False)
    assert isinstance(answer, dict) and answer["__type__"] == "update" and "value" not in answer


def test_a_search_without_a_reference_is_a_message(calls):
    with pytest.warns(UserWarning, match="No reference is chosen"):
        calls.search(Session(), "red", 3, False, False)


def test_a_message_is_text_and_no_markup():
    assert on_page("<b>`top_k` & 3") == "&lt;b&gt;the number of results &amp; 3."


def test_an_upload_is_a_reference_and_a_broken_one_a_message(calls, retriever, tmp_path):
    image = tmp_path / "mine <i>.png"
    Image.new("RGB", (60, 40), (200, 30, 30)).save(image)
    session, picture, name, file = calls.upload(str(image), Session())
    assert session.reference == Reference(image, image.name)
    assert "<i>" not in name and file is None and picture.size == (60, 40)
    after = calls.search(session, "make it blue", 3, False, False)[0]
    assert list(after.turn.results) == retriever.search(image, "make it blue", 3)
    broken = tmp_path / "broken.png"
    broken.write_bytes(image.read_bytes()[:60])
    with pytest.warns(UserWarning, match=r"The file broken.png cannot be read \(.*\): "):
        calls.upload(str(broken), Session())


def test_a_photograph_that_has_gone_is_an_empty_picture_and_a_message(calls, asked):
    session, sentence = asked
    found = calls.search(session, sentence, 3, False, False)[0]
    path = found.turn.results[1].path
    content = path.read_bytes()
    path.unlink()
    try:
        with pytest.warns(UserWarning, match="has gone: run the command index again"):
            answer = calls.switch(found, True, False)
        assert len(captions(answer[4])) == 3
        assert captions(calls.browse("", 0)[1])
    finally:
        path.write_bytes(content)


def test_a_name_that_the_index_does_not_have_is_a_message(calls):
    with pytest.warns(UserWarning, match="no photograph"):
        calls.pick(Session(), clicked(0, "../secret.png"))


def test_a_file_beside_the_process_does_not_stand_in_for_a_photograph(calls, asked, tmp_path, monkeypatch):
    """Names of the index are never looked up in the current folder."""
    name = asked[0].reference.name
    Image.new("RGB", (20, 20)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert calls.pick(Session(), clicked(0, name))[0].reference.path == calls.desk.retriever.photos / name


def slow_listing(names: list[str], part: str) -> list[str]:
    return [name for name in names if all(word in name.lower() for word in part.lower().split())]


@pytest.mark.parametrize("part", ["", "IMG1", "dev-1 img0", "dev-0-0-img0.png", "nothing"])
def test_pages_of_the_index_are_the_names_that_have_the_words(desk, part):
    expected = slow_listing(desk.retriever.gallery.names, part)
    first = desk.listing(part, 0)
    pages = [desk.listing(part, number) for number in range(first.pages)]
    assert [name for page in pages for name in page.names] == expected
    assert all(len(page.names) <= LISTED and page.total == len(expected) for page in pages)
    assert desk.listing(part, 99) == pages[-1] and desk.listing(part, -1) == first


def test_a_page_opens_its_own_photographs_alone(calls, monkeypatch):
    opened = []
    monkeypatch.setattr("sprc.report.page.callbacks.thumbnail", lambda path: opened.append(path.name))
    listing, cells, line, back, on = calls.turn_page(1, "", Listing())
    assert opened == list(listing.names) == captions(cells) == calls.desk.retriever.gallery.names[LISTED:18]
    assert line == "13 to 18 of 18"
    assert (back["interactive"], on["interactive"]) == (True, False)


def test_a_click_changes_no_session_beside_another_one(retriever):
    """All callbacks that need the model or change a session share one place: one at a time."""
    functions = build_page(retriever).fns.values()
    of_python = [function for function in functions if function.fn is not None]
    assert {function.concurrency_limit for function in of_python} == {1}
    assert {function.concurrency_id for function in of_python} == {"session", "listing"}
    names = {function.name for function in of_python if function.concurrency_id == "session"}
    assert {"search", "switch", "choose", "use", "go_back", "start_over", "pick", "upload"} <= names
    assert {function.api_visibility for function in of_python} == {"private"}


def test_no_switch_without_boxes(retriever):
    for regions_of, visible in ((None, False), (lambda name: [], True)):
        parts = build_page(retriever, regions_of).blocks.values()
        assert [part.visible for part in parts if getattr(part, "elem_id", None) == "boxes"] == [visible]


def test_nothing_of_the_theme_comes_from_elsewhere():
    from sprc.report.page.style import CSS, theme

    made = theme()
    assert made._stylesheets == []
    assert "http" not in CSS and "@import" not in CSS and "url(" not in CSS


def test_a_port_that_is_taken(retriever):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"`port` {port} cannot be used \(Address already in use\): give another"):
            server.serve_page(retriever, port)
    with pytest.raises(InputError, match="ports end at 65535"):
        server.serve_page(retriever, 70000)


def test_a_signal_that_is_ignored_does_not_end_the_page():
    uvicorn = pytest.importorskip("uvicorn")
    running = uvicorn.Server(uvicorn.Config(None))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        server.leave_ignored(running)
    finally:
        signal.signal(signal.SIGINT, before)
    running.handle_exit(signal.SIGINT, None)
    assert not running.should_exit
    running.handle_exit(signal.SIGTERM, None)
    assert running.should_exit


def test_without_gradio_the_fix_is_said(retriever, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "sprc-regions\[page\]"'):
        server.serve_page(retriever, 0)


def test_settings_of_the_environment_do_not_open_the_page(monkeypatch):
    monkeypatch.setenv("GRADIO_SHARE", "True")
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/")
    before = dict(os.environ)
    with server.own_settings():
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert folder.stat().st_mode & 0o077 == 0
        settings = {name: value for name, value in os.environ.items() if name.startswith("GRADIO_")}
        assert settings == {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    assert not folder.exists()
    assert dict(os.environ) == before
