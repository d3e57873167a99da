"""The page of a search holds everything in itself, and shows texts as texts."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from lavis.datasets.region_boxes import Region
from sprc.core.errors import InputError
from sprc.data.preprocess import squarepad_transform
from sprc.report.heat_maps import HeatMap, draw_heat_map
from sprc.report.html import html_page
from sprc.report.pictures import Picture, Role
from sprc.report.sheets import ResultLine, SheetRow

EVIL = "<script>alert('x')</script> & \"a dog\""


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, content: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def row(tmp_path) -> SheetRow:
    for name, colour in (("ref.png", "red"), ("a.png", "blue"), ("b.png", "green")):
        Image.new("RGB", (600, 300), colour).save(tmp_path / name)
    heat = HeatMap(np.eye(4, dtype=np.float32), squarepad_transform(56))
    box = (Region((0.25, 0.5, 0.75, 1.0), label=EVIL),)
    found = (
        Picture(tmp_path / "a.png", EVIL, "1", "0.5000", heat=heat, regions=box),
        Picture(tmp_path / "b.png", "b.png", "2", "0.4000", heat=heat),
    )
    return SheetRow(Picture(tmp_path / "ref.png", "ref.png", role=Role.REFERENCE), EVIL, (ResultLine(found),))


def test_all_texts_are_texts(row):
    page = Page(html_page(row, EVIL))
    assert page.all("script") == []
    assert page.text.count(EVIL) == 5  # title, sentence, name, label, and who found it
    assert [page.text.index(score) for score in ("0.5000", "0.4000")] == sorted(
        page.text.index(score) for score in ("0.5000", "0.4000")
    )


def test_the_pictures_are_in_the_page(row, tmp_path):
    images = Page(html_page(row, "a model")).all("img")
    assert len(images) == 5  # the reference, and each result with and without its heat map
    opened = []
    for image in images:
        kind, content = image["src"].split(",", 1)
        assert kind == "data:image/jpeg;base64"
        opened.append(Image.open(io.BytesIO(base64.b64decode(content))))
    assert {picture.size for picture in opened} == {(384, 192)}
    assert opened[0].getpixel((9, 9))[0] > 250
    heat = row.results[0].pictures[0].heat
    expected = draw_heat_map(Image.new("RGB", (384, 192), "blue"), heat, (600, 300))
    difference = np.asarray(opened[2], float) - np.asarray(expected, float)
    assert np.abs(difference).mean() < 3  # JPEG


def test_nothing_comes_from_elsewhere(row):
    content = html_page(row, "a model")
    assert re.findall(r"(?:https?:)?//[\w.]", re.sub(r"base64,[^\"]*", "", content)) == []
    assert "@import" not in content
    assert "url(" not in content


def test_boxes_lie_where_they_belong(row):
    (rectangle,) = Page(html_page(row, "a model")).all("rect")
    assert [float(rectangle[name]) for name in ("x", "y", "width", "height")] == [96.0, 96.0, 192.0, 96.0]


def test_the_switch_of_boxes_is_there_if_there_are_boxes(row):
    assert 'id="boxes"' in html_page(row, "a model")
    plain = SheetRow(row.reference, row.sentence, (ResultLine(row.results[0].pictures[1:]),))
    assert 'id="boxes"' not in html_page(plain, "a model")


def test_a_photograph_that_has_gone_is_named(row, tmp_path):
    (tmp_path / "b.png").unlink()
    with pytest.raises(InputError, match=r"b\.png"):
        html_page(row, "a model")
