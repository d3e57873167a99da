"""How the tools see images: the stored frame and the colours of a training, an ultralytics that turns, odd files."""

import json
import os
import shutil
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_inputs import AVIF
from box_runs import iou, run
from PIL import Image, ImageOps
from visualize_boxes import main as visualize

from data_utils import CIRRDataset
from sprc.boxes.drawing import HEIGHT, MARGIN, TITLE
from sprc.boxes.saliency import saliency_boxes
from sprc.boxes.yolo import Detector
from sprc.core.errors import InputError
from sprc.data.preprocess import targetpad_transform
from sprc.data.triplets import ImageRegions


class FakeYolo:
    """What ultralytics does with images of PIL: it turns them by their EXIF orientation. Finds what is blue."""

    given: list[np.ndarray]

    def __init__(self, weights: str):
        FakeYolo.given = []

    def predict(self, images, **options):
        arrays = [np.asarray(ImageOps.exif_transpose(image).convert("RGB")) for image in images]
        FakeYolo.given += arrays
        return [self.result(array) for array in arrays]

    def result(self, pixels: np.ndarray):
        rows, columns = np.nonzero((pixels[:, :, 2] > 200) & (pixels[:, :, 0] < 50))
        height, width = pixels.shape[:2]
        found = [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
        boxes = Namespace(xyxyn=torch.tensor([found]), cls=torch.zeros(1), conf=torch.ones(1))
        boxes.cpu = lambda: boxes
        return Namespace(boxes=boxes, names={0: "blue"})


@pytest.fixture
def fake_yolo(monkeypatch):
    """An ultralytics whose YOLO is `FakeYolo`."""
    module = Namespace(YOLO=FakeYolo, utils=Namespace(SAFE_LOAD=True), __version__="0")
    monkeypatch.setitem(sys.modules, "ultralytics", module)
    return FakeYolo


def blue_corner(path, value: int, **options) -> None:
    """800 x 400 pixels, tagged to be turned; the left upper quarter is blue."""
    exif, image = Image.Exif(), Image.new("RGB", (800, 400), (250, 250, 250))
    exif[0x0112] = value
    image.paste((10, 20, 240), (0, 0, 400, 200))
    image.save(path, exif=exif, **options)


def test_damaged_yolo_weights_are_named(tmp_path, fake_yolo):
    """Their zip has CRCs, which ultralytics does not look at: the boxes would be others."""
    path = tmp_path / "yolov8n.pt"
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "whole.pt")
    Detector(tmp_path / "whole.pt", "cpu")
    content = bytearray((tmp_path / "whole.pt").read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 400] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"yolov8n\.pt is damaged: .*data/0 is not what was written"):
        Detector(path, "cpu")


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_every_tool_sees_a_tagged_image_as_it_is_stored(tmp_path, demo_copy, fake_yolo, name, capsys):
    """Training boxes, sizes, saliency, YOLO and the contact sheet: one frame, 800 x 400."""
    dataset = CIRRDataset("train", "relative", targetpad_transform(2.0, 56), data_path=demo_copy)
    image = dataset.queries[0].reference
    folder = dataset.path_of(image).parent
    blue_corner(tmp_path / name, 6, **({"quality": 98} if name == "a.jpg" else {}))
    shutil.copy(tmp_path / name, dataset.path_of(image))
    expected, boxes = (0, 0, 0.5, 0.5), tmp_path / "boxes.json"
    flags = ["--images", str(folder), "--yolo-weights", str(tmp_path / "y.pt"), "--overwrite"]
    for method in ("saliency", "yolo"):
        if method == "yolo":
            for other in folder.glob("*.png"):
                shutil.copy(tmp_path / name, other)
        assert iou(run(tmp_path, *flags, "--method", method)[image][0].box, expected) > 0.9
        assert "images carry an EXIF orientation. It is applied nowhere" in capsys.readouterr().out
    assert {array.shape for array in fake_yolo.given} == {(400, 800, 3)}
    assert dataset.get_image_size(image) == (800, 400)

    (box,), _ = ImageRegions(boxes, dataset, [image]).of(image, dataset.get_image_size(image))
    pixels = dataset.load_image(image)
    assert iou(box.tolist(), expected) > 0.9
    blue = pixels[2] - pixels[0] > 1
    assert (blue[:26, :26].all(), bool(blue[:, 30:].any()), bool(blue[30:].any())) == (True, False, False)

    sheet = tmp_path / "sheet.png"
    draw = ["--images", str(folder), "--box-file", str(boxes), "--names", image, "--target-ratio", "2"]
    visualize([*draw, "--output", str(sheet)])
    with Image.open(sheet) as drawn:
        assert drawn.size == (2 * MARGIN + 2 * HEIGHT + MARGIN // 2 + HEIGHT, 2 * MARGIN + TITLE + HEIGHT)
        assert drawn.getpixel((MARGIN + 200, MARGIN + TITLE + 100))[2] > 200
        assert min(drawn.getpixel((MARGIN + 200, MARGIN + TITLE + 300))) > 200


def test_sixteen_bit_grey_is_grey_for_saliency_and_yolo(tmp_path, fake_yolo, monkeypatch):
    pixels = np.full((100, 100), 20000, dtype=np.uint16)
    pixels[30:60, 20:70] = 60000
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    monkeypatch.setattr(FakeYolo, "result", lambda self, pixels: Namespace(boxes=None, names={}))
    monkeypatch.setattr("sprc.boxes.yolo.regions_of", lambda *arguments: [])
    flags = ["--images", str(tmp_path / "images"), "--yolo-weights", str(tmp_path / "y.pt"), "--method", "hybrid"]
    assert iou(run(tmp_path, *flags)["a"][0].box, (0.2, 0.3, 0.7, 0.6)) > 0.9
    assert (fake_yolo.given[0][:, :, 0] == pixels >> 8).all()
    assert saliency_boxes(Image.fromarray(pixels)) != []


@pytest.mark.parametrize("method", ["saliency", "yolo"])
def test_odd_files_are_left_out_and_nothing_hangs(tmp_path, fake_yolo, method, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    blue_corner(folder / "a.png", 1)
    os.mkfifo(folder / "b.png")
    (folder / "c.png").mkdir()
    (folder / "d.png").write_bytes(AVIF)
    Image.new("1", (20000, 20000)).save(folder / "e.png")
    (folder / "f.png").touch()
    Image.new("RGB", (20000, 2)).save(folder / "g.png") if method == "saliency" else None
    flags = ["--images", str(folder), "--yolo-weights", str(tmp_path / "y.pt"), "--method", method]
    found, said = run(tmp_path, *flags), capsys.readouterr()
    assert list(found) == (["a", "g"] if method == "saliency" else ["a"])
    assert f"image 'b' at {folder / 'b.png'} left out: it is no regular file" in said.err
    for part in ("'c'", "'d'", "of format AVIF, which is not read here", "pixels: shrink it", "it is empty"):
        assert part in said.err
    assert "EXIF" not in said.out


def test_boxes_of_an_older_tool_are_not_taken_for_new_ones(demo, tmp_path):
    run(tmp_path, "--cirr-root", str(demo))
    made = tmp_path / "boxes.json.made"
    recipe = json.loads(made.read_text())
    assert recipe.pop("frame") == "stored"
    made.write_text(json.dumps(recipe, sort_keys=True))
    with pytest.raises(InputError, match="not made in this way"):
        run(tmp_path, "--cirr-root", str(demo))


def test_a_file_name_that_is_no_text_is_answered(tmp_path):
    """Its boxes could not be read back: JSON holds text alone."""
    folder = tmp_path / "images"
    folder.mkdir()
    blue_corner(os.fsdecode(os.fsencode(folder) + b"/\xff.png"), 1)
    with pytest.raises(InputError, match=r"the name of the file '\\udcff\.png' is not valid UTF-8: rename it"):
        run(tmp_path, "--images", str(folder))


AS_NOBODY = """
import os, sys
from pathlib import Path
import visualize_boxes  # loaded while its files can be read
from generate_cirr_boxes import main
from sprc.core.errors import InputError
os.setuid(65534)
try:
    print(list(main(["--images", sys.argv[1], "--output", sys.argv[2], "--num-workers", "0"])))
except InputError as error:
    print("InputError", error)
"""


@pytest.mark.integration
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("mode", "of_parent", "says"), [
    (0o711, 0o755, "cannot be listed (Permission denied)"),
    (0o755, 0o700, "no folder"),
    (0o744, 0o755, "Permission denied: make it readable"),
])  # fmt: skip
def test_permission_denied_is_one_line(warm, mode, of_parent, says):
    """A folder that cannot be listed, one that cannot be reached, and one whose files cannot be."""
    with tempfile.TemporaryDirectory() as place:  # pytest's own is closed to other users
        folder = Path(place) / "parent" / "images"
        folder.mkdir(parents=True)
        blue_corner(folder / "a.png", 1)
        (Path(place) / "out").mkdir()
        for path, bits in (
            (folder, mode),
            (folder.parent, of_parent),
            (Path(place), 0o755),
            (Path(place) / "out", 0o777),
        ):
            path.chmod(bits)
        words = ["-c", AS_NOBODY, folder, Path(place) / "out" / "b.json"]
        answer = warm(*words, PYTHONPATH=os.pathsep.join(sys.path)).finished()
        folder.parent.chmod(0o755)
    assert "Traceback" not in answer.stderr
    assert says in answer.stdout + answer.stderr
