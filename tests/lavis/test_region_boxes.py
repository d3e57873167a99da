"""The box file: what is loaded, what is refused and how, and the way of a box from the raw image to the input frame."""

import json
import math
import time

import numpy as np
import pytest
import torch
from bad_inputs import UPSIDE_DOWN
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from data_utils import CIRRDataset, collate_fn
from lavis.datasets.region_boxes import Region, load_boxes, read_box_file, regions_of, save_boxes
from sprc.core.errors import InputError
from sprc.data.preprocess import SMALLEST_SIDE, squarepad_transform, targetpad_transform

PIPELINES = {"targetpad": targetpad_transform(1.25, 224), "squarepad": squarepad_transform(224),
             "targetpad 1": targetpad_transform(1.0, 224), "targetpad 2": targetpad_transform(2.0, 224)}  # fmt: skip


def write(path, content) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_both_forms_of_a_box(tmp_path):
    content = {"a": [[0, 0.1, 0.5, 1], {"box": [0.2, 0.2, 0.4, 0.4], "label": "cup", "score": 0.5}], "b": []}
    boxes = load_boxes(write(tmp_path / "b.json", content))
    assert boxes == {"a": [Region((0, 0.1, 0.5, 1)), Region((0.2, 0.2, 0.4, 0.4), "cup", 0.5)], "b": []}
    save_boxes(tmp_path / "again.json", boxes)
    assert load_boxes(tmp_path / "again.json") == boxes
    written = json.loads((tmp_path / "again.json").read_text())
    assert (next(iter(written.items())), written["a"][0]) == (("__frame__", "stored"), [0, 0.1, 0.5, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": [[0, 0, 1', "not valid JSON"),
        ("[]", "JSON dict"),
        ({"img7": [0, 0, 1, 1]}, r"'img7', box 0 is 0: write four numbers"),
        ({"img7": None}, r"'img7' has None; write a list"),
        ({"img7": [[0, 0, 1]]}, "four numbers"),
        ({"img7": [[0, 0, "1", 1]]}, "four numbers"),
        ({"img7": [[0, 0, True, 1]]}, "four numbers"),
        ({"img7": [[0, 0, 1, 1], [0, 0, 1.01, 1]]}, r"'img7', box 1 is \[0, 0, 1.01, 1\]: a value is NaN or outside"),
        ({"img7": [[-0.1, 0, 1, 1]]}, "outside"),
        ('{"img7": [[NaN, 0, 1, 1]]}', "NaN"),
        ('{"img7": [[0, 0, Infinity, 1]]}', "pixels"),
        ({"img7": [[0.5, 0, 0.5, 1]]}, "x2 must be above x1"),
        ({"img7": [[0, 0.6, 1, 0.5]]}, "y2 above y1"),
        ({"img7": [[10, 20, 300, 200]]}, "look like pixels: divide by the width and height"),
        ({"img7": [{"label": "cup"}]}, "four numbers"),
        ({"img7": [{"box": [0, 0, 1, 1], "score": "high"}]}, "score must be a number"),
        ('{"img7": [{"box": [0, 0, 1, 1], "score": NaN}]}', "neither NaN nor infinite"),
        ('{"img7": [{"box": [0, 0, 1, 1], "score": -Infinity}]}', "neither NaN nor infinite"),
        ({"img7": [{"box": [0, 0, 1, 1], "score": 10**400}]}, "neither NaN nor infinite"),
        ({"img7": [{"box": [0, 0, 1, 1], "score": True}]}, "score must be a number"),
        ({"img7": [{"box": [0, 0, 1, 1], "label": 3.5}]}, "label must be a text"),
        ({"img7": [{"box": [0, 0, 1, 1], "label": True}]}, "label must be a text"),
        ({"img7": [[0.1, 0.1, 0.5, 1.0002]]}, "outside"),
        ({"img7": [[-0.0002, 0.1, 0.5, 1]]}, "outside"),
        ({"img7": [[1, 0, 1.00005, 1]]}, "x2 must be above x1"),
        ({"img7": [[0, -0.00005, 1, 0]]}, "y2 above y1"),
        ({"__frame__": "upright"}, r'"__frame__" is .upright.: boxes are read in the frame "stored" alone'),
        ({"__frame__": None}, "is None: boxes are read"),
        ({"__frame__": [[0, 0, 1, 1]]}, "boxes are read in the frame"),
    ],
)
def test_wrong_files_are_refused_by_image_and_box(tmp_path, content, message):
    path = write(tmp_path / "b.json", content)
    with pytest.raises(InputError, match=message) as error:
        load_boxes(path)
    assert path in str(error.value)


def test_a_huge_wrong_entry_is_shown_in_short(tmp_path):
    for content in ({"a": [["x" * 10**5] * 10**3]}, {"a": "x" * 10**5}, {"__frame__": ["x" * 10**5] * 10}):
        with pytest.raises(InputError) as error:
            load_boxes(write(tmp_path / "b.json", content))
        assert len(str(error.value)) < 1000


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no file .*none\.json"):
        load_boxes(tmp_path / "none.json")


def test_a_wrong_box_is_not_saved(tmp_path):
    with pytest.raises(InputError, match="outside"):
        save_boxes(tmp_path / "b.json", {"a": [Region((0, 0, 2, 1))]})
    assert list(tmp_path.iterdir()) == []


def test_a_rounding_outside_is_clipped_and_counted(tmp_path, caplog):
    content = {"a": [[0.5, 0, 1.0000001, 1], {"box": [-1e-4, 0, 1, 1.0001]}, [0, 0, 1, 1]], "b": [[0, 0, 1, 1]]}
    file = read_box_file(write(tmp_path / "b.json", content))
    assert [region.box for region in file.regions["a"]] == [(0.5, 0, 1, 1), (0, 0, 1, 1), (0, 0, 1, 1)]
    regions_of(file, ["a"], "CIRR train")
    assert caplog.messages[-1].endswith("; 2 boxes of the file, a rounding outside [0, 1], are clipped")


def test_the_number_of_a_class_is_a_label(tmp_path):
    boxes = load_boxes(write(tmp_path / "b.json", {"a": [{"box": [0, 0, 1, 1], "label": 17}]}))
    assert boxes == {"a": [Region((0, 0, 1, 1), "17")]}


def test_what_is_saved_needs_no_clipping(tmp_path):
    save_boxes(tmp_path / "b.json", {"a": [Region((-1e-7, 0, 1.0000001, 1), 17)]})
    file = read_box_file(tmp_path / "b.json")
    assert (file.clipped, file.regions) == (0, {"a": [Region((0, 0, 1, 1), "17")]})


def test_no_image_has_the_name_of_the_frame(tmp_path):
    with pytest.raises(InputError, match="'__frame__' is no name for an image"):
        save_boxes(tmp_path / "b.json", {"__frame__": []})


def test_a_partial_overlap_is_counted_and_none_is_an_error(tmp_path, caplog):
    path = write(tmp_path / "b.json", {"a": [[0, 0, 1, 1]], "b": [], "z": [[0, 0, 1, 1]]})
    file = read_box_file(path)
    assert list(regions_of(file, ["a", "b", "c", "a"], "CIRR train")) == ["a", "b"]
    said = f"boxes: 1 regions for 2 of 3 images of CIRR train; 1 have none, 1 are not in {path}"
    assert caplog.messages == [said]
    with pytest.raises(InputError, match="shares no image name with CIRR train: it has names like"):
        regions_of(file, ["x", "y"], "CIRR train")


def test_all_real_entries_load_quickly(shared):
    """In units of reading the JSON and making floats, so that a slow machine passes too; 0.7 s on a usual one."""
    path = shared / "boxes" / "cirr_boxes_train.json"
    start = time.process_time()
    boxes = load_boxes(path)
    seconds = time.process_time() - start
    start = time.process_time()
    plain = {name: [[float(v) for v in box] for box in found] for name, found in json.loads(path.read_text()).items()}
    unit = time.process_time() - start
    print(f"{len(boxes)} entries in {seconds:.2f} s, {seconds / unit:.1f} units")
    assert (len(boxes), sum(not regions for regions in boxes.values())) == (16939, 2672)
    assert boxes.keys() == plain.keys()
    assert seconds < 15 * unit


# --- from the raw image to the input frame ----------------------------------------------------------------------------


@given(
    st.integers(40, 600), st.integers(40, 600), st.sampled_from(sorted(PIPELINES)), st.tuples(*[st.floats(0, 1)] * 4)
)
def test_a_painted_box_lands_where_its_coordinates_do(width, height, pipeline, corners):
    """Painting a box into the raw image and preprocessing it gives the box of `move_boxes`, within a pixel."""
    preprocess = PIPELINES[pipeline]
    left, right = sorted(int(corners[i] * width) for i in (0, 1))
    top, bottom = sorted(int(corners[i] * height) for i in (2, 3))
    box = [left / width, top / height, right / width, bottom / height]
    moved = preprocess.move_boxes([box], width, height)
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), (left, top, right, bottom))
    painted = np.asarray(preprocess.to_frame(image))[:, :, 0] > 127
    sides = [int(painted.any(axis=axis).sum()) for axis in (0, 1)]
    if moved.dropped:
        assert min(sides) <= SMALLEST_SIDE + 2
        return
    columns, rows = (np.flatnonzero(painted.any(axis=axis)) for axis in (0, 1))
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert np.abs(np.array(found) - 224 * moved.boxes[0].numpy()).max() <= 1


def test_the_documented_example():
    """640 x 360 with targetpad 1.25: the whole image before clipping, as in the notes on the earlier port."""
    from sprc.data.preprocess import input_geometry

    whole = np.array([[0.0, 0.0, 1.0, 1.0]])
    found = input_geometry(640, 360, 1.25, 224).to_input(whole, 640, 360)[0].tolist()
    assert found == pytest.approx([-0.125, 0.148, 1.125, 0.852], abs=2e-3)
    assert PIPELINES["targetpad"].move_boxes(whole, 640, 360).boxes[0].tolist() == pytest.approx(
        [0, 0.148, 1, 0.852], abs=2e-3
    )


def test_small_and_outside_boxes_are_dropped_and_counted():
    preprocess = targetpad_transform(1.25, 224)
    boxes = [[0, 0, 7 / 224, 1], [0, 0, 6.9 / 224, 1], [0.5, 0.5, 1, 1], [0, 0, 0.01, 0.01]]
    moved = preprocess.move_boxes(boxes, 224, 224)
    assert (moved.kept, moved.dropped) == ([2, 0], 2)
    outside = preprocess.move_boxes([[0, 0, 0.05, 1]], 640, 360)  # the crop cuts the left eighth of the frame off
    assert (outside.boxes.shape, outside.dropped) == ((0, 4), 1)
    assert preprocess.move_boxes([], 640, 360).boxes.shape == (0, 4)


def test_the_share_of_real_regions_that_is_dropped(shared):
    """Over the real box file, at sizes that photographs have: its own images are not here."""
    from count_dropped_regions import main

    shares = main(["--box-file", str(shared / "boxes" / "cirr_boxes_train.json")])
    assert all(0 <= share < 5 for share in shares.values())
    assert shares["squarepad", (500, 500)] < 0.1


def test_dropped_regions_are_counted(tmp_path, capsys):
    from count_dropped_regions import main

    path = write(tmp_path / "b.json", {"a": [[0, 0, 1, 1], [0, 0, 0.01, 1]], "b": [[0, 0, 0.1, 0.1]]})
    assert main(["--box-file", path, "--sizes", "224x224"])["targetpad", (224, 224)] == pytest.approx(100 / 3)
    assert "3 boxes; dropped" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--box-file", path, "--sizes", "224"])


# --- the dataset ------------------------------------------------------------------------------------------------------

SMALL = targetpad_transform(1.25, 56)


@pytest.fixture
def box_file(demo):
    return demo / "boxes" / "cirr_boxes_train.json"


def test_tuples_with_boxes(demo, box_file):
    plain = CIRRDataset("train", "relative", SMALL, data_path=demo)
    dataset = CIRRDataset("train", "relative", SMALL, box_file, demo)
    for index in range(3):
        reference, target, caption, ref_boxes, tgt_boxes = dataset[index]
        assert torch.equal(reference, plain[index][0])
        assert torch.equal(target, plain[index][1])
        assert caption == plain[index][2]
        query = dataset.queries[index]
        for boxes, name in ((ref_boxes, query.reference), (tgt_boxes, query.target)):
            raw = [region.box for region in load_boxes(box_file)[name]]
            expected = SMALL.move_boxes(raw, *dataset.get_image_size(name)).boxes[:5]
            assert boxes.dtype == torch.float32
            assert torch.equal(boxes, expected)
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
            torch.testing.assert_close(areas, areas.sort(descending=True).values)
    assert len(dataset[0]) == 5
    assert len(plain[0]) == 3
    assert len(CIRRDataset("val", "relative", SMALL, box_file, demo)[0]) == 4


def test_at_most_so_many_regions(demo, box_file):
    dataset = CIRRDataset("train", "relative", SMALL, box_file, demo, max_regions=1)
    assert all(len(boxes) <= 1 for i in range(5) for boxes in dataset[i][3:])
    with pytest.raises(InputError, match="`max_regions`"):
        CIRRDataset("train", "relative", SMALL, box_file, demo, max_regions=0)


def test_image_sizes(demo):
    dataset = CIRRDataset("train", "relative", SMALL, data_path=demo)
    name = dataset.names[3]
    with Image.open(demo / dataset.image_paths[name]) as image:
        assert dataset.get_image_size(name) == image.size
    with pytest.raises(InputError, match="no image 'nobody'"):
        dataset.get_image_size("nobody")


def test_boxes_of_an_unknown_frame_are_not_for_tagged_images(demo_copy):
    path = demo_copy / "boxes" / "cirr_boxes_train.json"
    boxes, plain = load_boxes(path), CIRRDataset("train", "relative", SMALL, data_path=demo_copy)
    query = plain.queries[0]
    for name in (query.reference, query.target):
        Image.new("RGB", (80, 40)).save(plain.path_of(name), "JPEG", exif=UPSIDE_DOWN)
    says = rf"{path} does not say in which frame .* 2 images of CIRR train .* first {query.reference}, .*generate_cirr"
    with pytest.raises(InputError, match=says):
        CIRRDataset("train", "relative", SMALL, path, demo_copy)
    content = json.loads(path.read_text())
    write(path, content | {query.reference: [], query.target: []})  # no box could lie elsewhere
    CIRRDataset("train", "relative", SMALL, path, demo_copy)
    save_boxes(path, boxes)
    assert CIRRDataset("train", "relative", SMALL, path, demo_copy).get_image_size(query.reference) == (80, 40)


def test_a_preprocess_that_cannot_move_boxes_is_refused(demo, box_file):
    with pytest.raises(InputError, match="targetpad_transform"):
        CIRRDataset("train", "relative", lambda image: torch.zeros(3, 56, 56), box_file, demo)


def test_collate_takes_any_number_of_boxes(demo, box_file):
    dataset = CIRRDataset("train", "relative", SMALL, box_file, demo)
    items = [dataset[i] for i in range(6)]
    images, _, captions, ref_boxes, tgt_boxes = collate_fn(items)
    assert images.shape == (6, 3, 56, 56)
    assert captions == [item.caption for item in items]
    assert [len(boxes) for boxes in ref_boxes] == [len(item.ref_boxes) for item in items]
    assert all(torch.equal(boxes, item.tgt_boxes) for boxes, item in zip(tgt_boxes, items, strict=True))
    loader = DataLoader(dataset, 6, num_workers=2, collate_fn=collate_fn)
    assert [len(boxes) for boxes in next(iter(loader))[3]] == [len(item.ref_boxes) for item in items]
    rebuilt = collate_fn([(i, *item) for i, item in enumerate(items)])  # as a dataset around it may do
    assert [len(boxes) for boxes in rebuilt[4]] == [len(item.ref_boxes) for item in items]
    named = collate_fn([{"boxes": torch.zeros(n, 4)} for n in (1, 2)])
    assert [len(boxes) for boxes in named["boxes"]] == [1, 2]
    alike = [item for item in items if len(item.ref_boxes) == len(items[0].ref_boxes)]
    assert isinstance(collate_fn(alike)[3], list)
    triplets = dataset.training
    found = collate_fn([triplets[0], triplets[1]])
    assert found["image"].shape == (2, 3, 56, 56)
    assert [len(boxes) for boxes in found["reference_boxes"]] == [len(triplets[i]["reference_boxes"]) for i in (0, 1)]
    assert all(math.isfinite(count) for count in found["dropped"])
