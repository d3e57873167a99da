"""The search page as a visitor has it: in Chromium, which says all that the page loads."""

import importlib.util
import io
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from page_index import demo_queries, make_index, query_that_finds
from paths import REPOSITORY
from PIL import Image
from warm import WarmProcess

from lavis.datasets.region_boxes import load_boxes
from sprc.data.images import open_small
from sprc.report.heat_maps import HeatMap
from sprc.retrieval.results import Result
from sprc.retrieval.retriever import Retriever

pytestmark = pytest.mark.integration

BROWSERS = ("chromium", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
MILLISECONDS = 60_000  # until something must have come, on a busy machine
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 480, "height": 900}


@pytest.fixture(scope="module")
def browser():
    if importlib.util.find_spec("gradio") is None:  # to import it would take long, and only the server needs it
        pytest.skip('the page needs gradio: pip install -e ".[page]"')
    driver = pytest.importorskip("playwright.sync_api", reason='no playwright: pip install -e ".[browser]"')
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser of {', '.join(BROWSERS)}: apt install chromium")
    driver.expect.set_options(timeout=MILLISECONDS)
    with driver.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield running
        running.close()


@dataclass
class Served:
    """The page in a process of its own, and the retriever with which its answers are compared."""

    retriever: Retriever
    process: WarmProcess
    address: str
    addresses: Path
    temporary: Path


@pytest.fixture(scope="module")
def served(browser, demo, small_yaml, tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    retriever = make_index(demo, small_yaml, folder)
    addresses, temporary = folder / "addresses.txt", folder / "temporary"
    temporary.mkdir()
    words = [folder / "index", demo / "boxes" / "cirr_boxes_val.json", addresses]
    words = [str(Path(__file__).with_name("page_process.py")), *map(str, words)]
    process = WarmProcess(words, folder, REPOSITORY, {"TMPDIR": str(temporary)})
    try:
        process.wait_for_line("http://127.0.0.1")
        found = re.search(r"^(http://127\.0\.0\.1:\d+) is the page", process.out.read_text(), re.MULTILINE)
        assert found, process.finished()
        yield Served(retriever, process, found[1], addresses, temporary)
    finally:
        process.end()


@dataclass
class Log:
    """What a page of the browser asks for and complains of."""

    requests: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def watch(self, page) -> None:
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", self._note_failure)
        page.on("response", lambda answer: answer.status >= 400 and self.faults.append(f"{answer.status} {answer.url}"))
        page.on("console", lambda line: line.type == "error" and self.faults.append(line.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))

    def _note_failure(self, request) -> None:
        """The page itself ends the stream of events when all its events have been answered."""
        ended = request.failure == "net::ERR_ABORTED" and urlsplit(request.url).path == "/gradio_api/queue/data"
        if not ended:
            self.faults.append(f"{request.failure} {request.url}")

    @property
    def foreign(self) -> list[str]:
        """Requests to any other machine."""
        places = [(urlsplit(url), url) for url in self.requests]
        return [url for place, url in places if place.scheme in ("http", "https") and place.hostname != "127.0.0.1"]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def page(browser, served, log):
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    page.set_default_timeout(MILLISECONDS)
    log.watch(page)
    page.goto(served.address)
    cells(page, "index").first.wait_for()
    yield page
    context.close()


def cells(page, part: str):
    return page.locator(f"#{part} .thumbnail-item")


def pick(page, name: str) -> None:
    """Choose a photograph of the index as the reference."""
    from playwright.sync_api import expect

    page.locator("#part textarea").fill(name)
    expect(cells(page, "index")).to_have_text([name])
    cells(page, "index").first.click()
    expect(page.locator("#reference-name")).to_have_text(name)


def ask(page, sentence: str, turns: int) -> None:
    """Write a sentence and press Enter; it makes so many turns."""
    from playwright.sync_api import expect

    page.locator("#sentence textarea").fill(sentence)
    page.locator("#sentence textarea").press("Enter")
    expect(cells(page, "history")).to_have_count(turns)


def shows(page, results: list[Result]) -> None:
    """The page shows these results, with rank, score and name."""
    from playwright.sync_api import expect

    captions = [f"{result.rank} · {result.score:.4f} {result.name}" for result in results]
    expect(cells(page, "results")).to_have_text(captions)


def large_picture(page) -> Image.Image:
    answer = page.request.get(page.locator("#large img").get_attribute("src"))
    return Image.open(io.BytesIO(answer.body())).convert("RGB")


def distance(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of two pictures, in levels of 255. Pictures reach the page with the losses of WebP."""
    assert one.size == other.size
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


def test_two_turns_with_heat_maps_boxes_and_messages(page, served, demo, log, tmp_path):
    from playwright.sync_api import expect

    retriever = served.retriever
    query, _ = query_that_finds(retriever, demo)
    results = retriever.search(query.reference, query.sentence, 6)
    page.locator("#count input").fill("6")
    pick(page, query.reference)
    ask(page, query.sentence, 1)
    shows(page, results)
    expect(page.locator("#results")).to_contain_text(query.target)  # the demo's own target is found
    page.screenshot(path=tmp_path / "results.png")

    sees_heat_maps_and_boxes(page, served, results, demo)
    page.screenshot(path=tmp_path / "heat-maps.png")

    cells(page, "results").nth(1).click()
    expect(page.locator("#text")).to_contain_text(results[1].name)
    page.locator("#use").click()
    expect(page.locator("#reference-name")).to_have_text(results[1].name)
    expect(page.locator("#sentence textarea")).to_have_value("")
    expect(page.locator("#sentence textarea")).to_be_focused()
    second = demo_queries(demo)[1].sentence
    ask(page, second, 2)
    shows(page, retriever.search(results[1].name, second, 6))

    page.locator("#sentence textarea").fill("   ")
    page.locator("#sentence textarea").press("Enter")
    expect(page.locator(".toast-body")).to_contain_text("The sentence is empty")
    expect(cells(page, "history")).to_have_count(2)

    cells(page, "history").first.click()
    shows(page, results)
    expect(page.locator("#sentence textarea")).to_have_value(query.sentence)
    expect(page.locator("#reference-name")).to_have_text(query.reference)
    page.set_viewport_size(NARROW)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    page.screenshot(path=tmp_path / "narrow.png", full_page=True)
    assert_nothing_from_elsewhere(log, served)


def sees_heat_maps_and_boxes(page, served: Served, results: list[Result], demo: Path) -> None:
    """The switches change the large picture to what the project draws, and every small one."""
    from playwright.sync_api import expect

    from sprc.report.page.pictures import LARGE, draw_result

    best, images = results[0], page.locator("#results img")
    plain, before = open_small(best.path, LARGE), [image.get_attribute("src") for image in images.all()]
    assert distance(large_picture(page), plain) < 3
    heat = HeatMap(served.retriever.look(results)[0], served.retriever.preprocess)
    page.locator("#heat input").check()
    expect(images.first).not_to_have_attribute("src", before[0])
    after = [image.get_attribute("src") for image in images.all()]
    assert not set(before) & set(after)
    hot = draw_result(best, LARGE, heat, ())
    assert distance(plain, hot) > 20
    assert distance(large_picture(page), hot) < 3
    regions = load_boxes(demo / "boxes" / "cirr_boxes_val.json")[Path(best.name).stem]
    page.locator("#boxes input").check()
    expect(images.first).not_to_have_attribute("src", after[0])
    boxed = draw_result(best, LARGE, heat, regions)
    assert distance(large_picture(page), boxed) < min(3, distance(hot, boxed))


def assert_nothing_from_elsewhere(log: Log, served: Served) -> None:
    assert len(log.requests) > 30
    assert log.foreign == []
    assert log.faults == []
    assert served.addresses.read_text() == ""


def test_an_upload_is_searched_with_and_a_broken_one_is_a_message(page, served, log, tmp_path):
    from playwright.sync_api import expect

    mine, broken = tmp_path / "mine.png", tmp_path / "broken.png"
    Image.linear_gradient("L").resize((180, 90)).convert("RGB").save(mine)
    broken.write_bytes(mine.read_bytes()[:100])
    page.get_by_role("tab", name="Upload").click()
    page.locator("#file input[type=file]").set_input_files(mine)
    expect(page.locator("#reference-name")).to_have_text("mine.png")
    sentence = "make it red, 红色"  # a word that the model does not know is left out, and shown as it is
    ask(page, sentence, 1)
    shows(page, served.retriever.search(mine, sentence, 10))
    page.locator("#file input[type=file]").set_input_files(broken)
    expect(page.locator(".toast-body")).to_contain_text("The file broken.png cannot be read")
    expect(page.locator("#reference-name")).to_have_text("mine.png")
    assert_nothing_from_elsewhere(log, served)


def test_visitors_do_not_see_each_other(page, browser, served):
    pick(page, served.retriever.gallery.names[0])
    other = browser.new_page()
    other.goto(served.address)
    cells(other, "index").first.wait_for(timeout=MILLISECONDS)
    assert "None yet" in other.locator("#reference-name").inner_text()
    assert other.locator("#answer").is_hidden()
    other.close()


def test_a_request_to_another_machine_would_be_seen(page, served, log):
    page.evaluate("fetch('http://elsewhere.invalid/').catch(() => 0)")
    assert log.foreign == ["http://elsewhere.invalid/"]
    assert any("elsewhere.invalid" in fault for fault in log.faults)


def test_another_site_s_name_is_refused_and_files_are_not_served(page, served, demo):
    get = page.request.get
    assert get(served.address, headers={"Host": "elsewhere.example"}).status == 400
    for path in (demo / "demo.json", served.retriever.gallery.path / "index.json", served.retriever.photos):
        assert get(f"{served.address}/gradio_api/file={path}").status in (403, 404)


def test_ctrl_c_ends_it_and_leaves_no_file(served):
    """The last test: the page is gone after it."""
    assert list(served.temporary.glob("sprc-page-*"))
    served.process.send_signal(signal.SIGINT)
    ended = served.process.finished()
    assert (ended.returncode, ended.stderr) == (130, "the page is closed\n")
    assert "Traceback" not in ended.stdout
    assert list(served.temporary.glob("sprc-page-*")) == []
