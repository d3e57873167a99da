"""A contact sheet: every picture in its place and frame, nothing over its edge, and faults named."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from lavis.datasets.region_boxes import Region
from sprc.boxes import drawing
from sprc.boxes.drawing import COLOURS
from sprc.core.errors import InputError
from sprc.data.preprocess import build_preprocess
from sprc.report.heat_maps import HeatMap
from sprc.report.pictures import CELL, SIDE, Picture, Role, draw_cell
from sprc.report.sheets import BLOCK_GAP, GAP, MARGIN, MOST_ACROSS, ResultLine, SheetRow, contact_sheet


@pytest.fixture
def image(tmp_path):
    """A function that writes an image of one colour and gives its path."""

    def write(name, size, colour="#123456"):
        Image.new("RGB", size, colour).save(tmp_path / name)
        return tmp_path / name

    return write


def where(picture: Image.Image, colour: str) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of all pixels of a colour; None if it has none."""
    found = (np.asarray(picture) == ImageColor.getrgb(colour)).all(axis=2)
    return Image.fromarray(found).getbbox()


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("size", [(400, 300), (3, 3), (9000, 20), (20, 9000), (1, 1)])
def test_a_picture_of_any_shape_is_framed_in_its_cell(image, role, size):
    cell = draw_cell(Picture(image("a.png", size), "a", role=role))
    colour, width = role.value
    assert cell.size == CELL
    left, top, right, bottom = where(cell, colour)
    inner = [max(1, round(side * min((SIDE - 2 * width) / s for s in size))) for side in size]
    assert (right - left, bottom - top) == (inner[0] + 2 * width, inner[1] + 2 * width)
    assert abs((left + right) - SIDE) <= 1 and abs((top + bottom) - SIDE) <= 1  # it stands in the middle
    assert where(cell, "#123456") == (left + width, top + width, right - width, bottom - width)


def test_long_texts_stay_in_their_cell(image):
    path = image("a.png", (40, 40))
    wide = draw_cell(Picture(path, "x" * 500 + ".png", "a title " * 50, "0.123"))
    short = draw_cell(Picture(path, "", "", "0.123"))
    detail = np.asarray(short)[SIDE + 2 : SIDE + 22, SIDE - 40 :]
    np.testing.assert_array_equal(np.asarray(wide)[SIDE + 2 : SIDE + 22, SIDE - 40 :], detail)  # nothing runs into it


def test_heat_and_boxes_are_drawn_on_the_raw_image(image):
    path = image("a.png", (400, 200), "white")
    heat = HeatMap(np.eye(4), build_preprocess("targetpad", 1.25, 56))
    plain = draw_cell(Picture(path, "a"))
    hot = draw_cell(Picture(path, "a", heat=heat))
    changed = np.asarray(plain) != np.asarray(hot)
    assert changed[SIDE // 2, SIDE // 2].all()  # a cell of the diagonal
    assert not changed[SIDE // 2, 2:17].any()  # cropped by targetpad
    boxed = draw_cell(Picture(path, "a", regions=(Region((0.25, 0, 0.75, 1)),)))
    left, _, right, _ = where(boxed, COLOURS[0])
    assert (left, right) == pytest.approx((1 + 182 / 4, 1 + 3 * 182 / 4), abs=1)


def row(image, results=2, target=True, lines=1, **more):
    path = image("a.png", (50, 40))
    line = ResultLine(tuple(Picture(path, "a", str(rank)) for rank in range(1, results + 1)), more.pop("heading", ""))
    found = Picture(path, "a", "target", role=Role.TARGET) if target else None
    return SheetRow(Picture(path, "a", "reference", role=Role.REFERENCE), "make it red", (line,) * lines, found, **more)


def width_of(before: int, across: int) -> int:
    return 2 * MARGIN + before * (SIDE + GAP) - GAP + BLOCK_GAP + across * (SIDE + GAP) - GAP


def test_columns_stand_below_each_other(image):
    sheet = contact_sheet([row(image, 3), row(image, 2, target=False)], "title")
    assert sheet.width == width_of(2, 3)
    pixels = np.asarray(sheet)
    centres = [MARGIN + SIDE // 2 + n * (SIDE + GAP) for n in range(2)]
    centres += [MARGIN + 2 * (SIDE + GAP) - GAP + BLOCK_GAP + SIDE // 2 + n * (SIDE + GAP) for n in range(3)]
    blue = (pixels == (0x12, 0x34, 0x56)).all(axis=2)
    half = [part[:, centres].any(axis=0).tolist() for part in np.array_split(blue, 2)]
    assert half == [[True] * 5, [True, False, True, True, False]]
    assert contact_sheet([row(image, 3, target=False)], "title").width == width_of(1, 3)


def test_many_results_go_on_below(image):
    few, many = (contact_sheet([row(image, count)], "t") for count in (MOST_ACROSS, MOST_ACROSS + 1))
    assert few.width == many.width == width_of(2, MOST_ACROSS)
    assert many.height - few.height == CELL[1] + GAP
    headed = contact_sheet([row(image, 2, lines=2, heading="a model")], "t")
    assert headed.height > contact_sheet([row(image, 2, lines=2)], "t").height


def test_no_text_crosses_the_margins(image):
    long = "make it red and " * 90
    given = SheetRow(row(image).reference, long, row(image, heading=long).results, note=long)
    sheet = contact_sheet([given], long, [long, "x"])
    box = Image.eval(sheet.convert("L"), lambda value: 255 * (value < 250)).getbbox()
    assert box[0] >= MARGIN - 2 and box[2] <= sheet.width - MARGIN + 2


def test_faults_are_named(image, tmp_path, monkeypatch):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match=r"image 'dog' at .*broken\.png cannot be read"):
        draw_cell(Picture(tmp_path / "broken.png", "dog"))
    monkeypatch.setattr(drawing, "MOST_PIXELS", 500_000)
    with pytest.raises(InputError, match="too many for a sheet: draw fewer queries"):
        contact_sheet([row(image)] * 5, "title")
