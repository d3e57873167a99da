"""The contact sheet: both frames of each image, boxes where they belong, and what is said about wrong input."""

import json

import numpy as np
import pytest
from PIL import Image, ImageColor
from visualize_boxes import main

from sprc.boxes import drawing
from sprc.boxes.drawing import COLOURS, HEIGHT, MARGIN, MOST_WIDTH, TITLE, contact_sheet
from sprc.core.errors import InputError


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (448, 224), "white").save(tmp_path / "wide.png")
    boxes = {"wide": [[0.25, 0.25, 0.75, 0.75], {"box": [0, 0, 0.02, 0.02], "label": "cup", "score": 0.5}], "bare": []}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return tmp_path


def coloured(sheet: np.ndarray, colour: str) -> list[int]:
    """[left, top, right, bottom) of all pixels of a colour."""
    ys, xs = np.nonzero((sheet == ImageColor.getrgb(colour)).all(axis=2))
    return [int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)] if len(xs) else []


def test_boxes_stand_in_both_frames(folder):
    output = folder / "out" / "sheet.png"
    main(["--images", str(folder), "--box-file", str(folder / "boxes.json"), "--output", str(output), "--columns", "1",
          "--transform", "squarepad"])  # fmt: skip
    sheet = np.asarray(Image.open(output))
    raw_width = 2 * HEIGHT
    assert sheet.shape == (2 * MARGIN + TITLE + HEIGHT, 2 * MARGIN + raw_width + MARGIN // 2 + HEIGHT, 3)
    top = MARGIN + TITLE
    raw = sheet[top:, MARGIN : MARGIN + raw_width]
    frame = sheet[top:, MARGIN + raw_width + MARGIN // 2 :]
    assert coloured(raw, COLOURS[0]) == [168, 84, 504, 252]
    # squarepad: the middle half of the frame's height is the image
    assert coloured(frame, COLOURS[0]) == [84, 126, 252, 210]
    assert coloured(raw, COLOURS[1])
    assert not coloured(frame, COLOURS[1])  # too small there


def test_a_dataset_in_cirrs_layout(demo, tmp_path):
    output = main(["--cirr-root", str(demo), "--split", "val", "--box-file", str(demo / "boxes/cirr_boxes_val.json"),
                   "--max-images", "3", "--output", str(tmp_path / "s.png")])  # fmt: skip
    assert Image.open(output).height == MARGIN + 2 * (TITLE + HEIGHT + MARGIN)


def test_wrong_input_is_answered(folder):
    boxes = str(folder / "boxes.json")
    with pytest.raises(InputError, match="share no nobody"):
        main(["--images", str(folder), "--box-file", boxes, "--names", "nobody"])
    with pytest.raises(InputError, match="no folder"):
        main(["--images", str(folder / "none"), "--box-file", boxes])
    (folder / "wide.png").write_bytes(b"cut")
    with pytest.raises(InputError, match="'wide' at"):
        main(["--images", str(folder), "--box-file", boxes])


def draw(folder, *flags):
    output = folder / "sheet.png"
    main(["--images", str(folder), "--box-file", str(folder / "boxes.json"), "--output", str(output), *flags])
    with Image.open(output) as image:
        return image.size


@pytest.mark.parametrize(("size", "shape"), [((20000, 200), (MOST_WIDTH, 13)), ((3, 900), (1, HEIGHT))])
def test_a_long_image_makes_no_huge_picture(folder, size, shape):
    Image.new("RGB", size).save(folder / "wide.png")
    margins = 2 * MARGIN + MARGIN // 2 + HEIGHT
    assert draw(folder, "--transform", "targetpad", "--target-ratio", "200")[0] == margins + shape[0]


def test_a_sheet_larger_than_an_image_may_be_is_refused():
    panels = [Image.new("RGB", (2 * MOST_WIDTH, HEIGHT))] * 200
    with pytest.raises(InputError, match="lower --max-images or --columns"):
        contact_sheet(panels, 100)


def test_panels_are_not_drawn_beyond_what_a_sheet_may_have(folder, monkeypatch):
    drawn = []
    names = [str(number) for number in range(50)]
    (folder / "boxes.json").write_text(json.dumps({name: [[0, 0, 1, 1]] for name in names}))
    for name in names:
        (folder / f"{name}.png").symlink_to(folder / "wide.png")

    def draw_panel(name, *arguments):
        drawn.append(name)
        return Image.new("RGB", (100, 100))

    monkeypatch.setattr(drawing, "draw_panel", draw_panel)
    monkeypatch.setattr(drawing, "MOST_PIXELS", 95_000)
    with pytest.raises(InputError, match="more than 9 of these pictures are too many for a sheet: lower --max-images"):
        draw(folder, "--max-images", "50")
    assert len(drawn) == 10


def test_the_sheet_is_a_png_and_is_written_whole_or_not_at_all(folder, monkeypatch):
    for name in ("sheet.webp", "sheet.jpeg", "sheet"):
        with pytest.raises(InputError, match=r"ends in \.png"):
            main(["--images", str(folder / "none"), "--box-file", "none", "--output", str(folder / name)])
    draw(folder)
    before = (folder / "sheet.png").read_bytes()

    def full(self, file, *arguments):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match="free some space"):
        draw(folder)
    assert (folder / "sheet.png").read_bytes() == before
    assert not list(folder.glob("*.partial"))


def test_two_images_of_one_name_are_refused(folder):
    Image.new("RGB", (9, 9)).save(folder / "wide.jpg")
    with pytest.raises(InputError, match="share a name"):
        draw(folder)


@pytest.mark.parametrize(("mode", "says"), [("F", "8 bits"), ("1", "shrink it")])
def test_what_cannot_be_drawn_is_named(folder, mode, says):
    Image.new(mode, (20000, 20000) if mode == "1" else (9, 9)).save(
        folder / "wide.png", "TIFF" if mode == "F" else "PNG"
    )
    with pytest.raises(InputError, match=rf"image 'wide' at \S+wide\.png cannot be read \(.*{says}"):
        draw(folder)


def test_long_names_and_labels_are_cut(folder):
    (folder / "boxes.json").write_text(json.dumps({"wide": [{"box": [0, 0, 1, 1], "label": "x" * 10**6}]}))
    assert draw(folder)[1] == 2 * MARGIN + TITLE + HEIGHT
