"""The contact sheet: both frames of each image, boxes where they belong, and what is said about wrong input."""

import json

import numpy as np
import pytest
from PIL import Image, ImageColor
from visualize_boxes import COLOURS, HEIGHT, MARGIN, TITLE, main

from lavis.common.errors import InputError


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
