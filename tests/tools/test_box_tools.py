"""The tools that make boxes: what saliency finds, how a run goes on, what is said of broken images, YOLO for real."""

import json
import re
import subprocess
import sys

import generate_cirr_boxes
import pytest
from box_runs import iou, run
from generate_boxes_example import main as make_example
from generate_cirr_boxes import main as generate
from PIL import Image

from lavis.datasets.region_boxes import load_boxes
from sprc.boxes import detection
from sprc.boxes.yolo import import_ultralytics
from sprc.core.errors import InputError
from sprc.demo.dataset import DemoSettings, make_demo_dataset


def share_found(found: dict, expected: dict) -> float:
    """The share of expected boxes that a found one covers at an IoU of 0.5."""
    hits = [
        any(iou(region.box, other.box) >= 0.5 for other in found[name])
        for name, regions in expected.items()
        for region in regions
    ]
    return sum(hits) / len(hits)


def test_saliency_finds_most_objects_of_the_demo_dataset(demo, tmp_path):
    found = run(tmp_path, "--cirr-root", str(demo))
    share = share_found(found, load_boxes(demo / "boxes" / "cirr_boxes_train.json"))
    print(f"objects found at IoU 0.5: {100 * share:.1f} %")
    assert share > 0.9


@pytest.mark.integration
@pytest.mark.parametrize("attempt", range(2))
def test_two_that_make_one_box_file_at_once(warm, demo, tmp_path, attempt):
    output = tmp_path / "boxes.json"
    flags = ["--cirr-root", str(demo), "--output", str(output), "--num-workers", "1"]
    ended = [each.finished() for each in [warm(generate_cirr_boxes.__file__, *flags) for _ in range(2)]]
    assert [each.returncode for each in ended] == [0, 0], ended
    assert sum("is there, made in this way" in each.stdout for each in ended) == 1
    assert load_boxes(output).keys() == load_boxes(demo / "boxes" / "cirr_boxes_train.json").keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes.json", "boxes.json.made"]


def test_saliency_before_a_cluttered_background(tmp_path):
    """That of the region benchmark, where the share of boxes that hold an object decides what they are worth."""
    small = {"triplets": 8, "val_images": 6, "val_triplets": 2, "test_images": 6, "test_triplets": 2}
    make_demo_dataset(tmp_path / "demo", DemoSettings(images=240, **small, difficulty="cluttered"))
    found = run(tmp_path, "--cirr-root", str(tmp_path / "demo"))
    expected = load_boxes(tmp_path / "demo" / "boxes" / "cirr_boxes_train.json")
    recall, precision = share_found(found, expected), share_found(expected, found)
    print(f"IoU 0.5: {100 * recall:.1f} % of the objects found, {100 * precision:.1f} % of the boxes hold one")
    assert recall > 0.5
    assert precision > 0.4


def test_saliency_on_photographs(shared, tmp_path):
    found = run(tmp_path, "--images", str(shared / "photos" / "cards"))
    share = share_found(found, load_boxes(shared / "photos" / "cards_boxes.json"))
    print(f"cards found at IoU 0.5: {100 * share:.1f} %")
    assert share > 0.4


def test_the_number_of_workers_changes_nothing(demo, tmp_path):
    assert run(tmp_path, "--cirr-root", str(demo)) == run(
        tmp_path, "--cirr-root", str(demo), name="other.json", workers="2"
    )


def test_all_splits_and_the_first_images(demo, tmp_path):
    paths = generate(["--cirr-root", str(demo), "--all-splits", "--max-images", "4", "--output", str(tmp_path)])
    assert [path.name for path in paths] == [f"cirr_boxes_{split}.json" for split in ("train", "val", "test1")]
    assert all(len(load_boxes(path)) == 4 for path in paths)


def test_the_images_of_the_first_triplets(demo, tmp_path):
    found = run(tmp_path, "--cirr-root", str(demo), "--max-triplets", "2")
    entries = json.loads((demo / "cirr" / "captions" / "cap.rc2.train.json").read_text())[:2]
    assert set(found) == {entry[key] for entry in entries for key in ("reference", "target_hard")}
    with pytest.raises(InputError, match="--split train"):
        generate(["--cirr-root", str(demo), "--max-triplets", "2", "--split", "val"])


def test_a_broken_image_is_reported_and_the_run_goes_on(demo_copy, tmp_path, capsys):
    broken = next((demo_copy / "dev").iterdir())
    broken.write_bytes(broken.read_bytes()[:60])
    found = run(tmp_path, "--cirr-root", str(demo_copy), "--split", "val")
    said = capsys.readouterr()
    assert broken.stem not in found
    assert len(found) == 17
    assert f"image {broken.stem!r} at {broken} left out: " in said.err
    assert re.search(r"left out, broken +1\n", said.out)


def test_an_interrupted_run_goes_on(demo, tmp_path, monkeypatch, capsys):
    original, seen = detection.boxes_of_file, []

    def interrupted(path, **limits):
        seen.append(path)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return original(path, **limits)

    monkeypatch.setattr(detection, "boxes_of_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--cirr-root", str(demo))
    progress = tmp_path / "boxes.json.progress"
    with progress.open("a") as file:
        file.write('{"name": "cut o')  # a line that was being written
    assert not (tmp_path / "boxes.json").exists()
    found = run(tmp_path, "--cirr-root", str(demo))
    assert "5 of 24 images are done already" in capsys.readouterr().out
    assert len(seen) == 6 + 19
    assert not progress.exists()
    monkeypatch.undo()
    assert found == run(tmp_path, "--cirr-root", str(demo), name="whole.json")


def test_a_finished_file_is_not_made_again_nor_overwritten(demo, tmp_path, capsys):
    run(tmp_path, "--cirr-root", str(demo))
    stamp = (tmp_path / "boxes.json").stat().st_mtime_ns
    run(tmp_path, "--cirr-root", str(demo))
    assert "is there, made in this way" in capsys.readouterr().out
    assert (tmp_path / "boxes.json").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="--overwrite"):
        run(tmp_path, "--cirr-root", str(demo), "--max-boxes", "1")
    assert max(map(len, run(tmp_path, "--cirr-root", str(demo), "--max-boxes", "1", "--overwrite").values())) == 1

    assert run(tmp_path, "--cirr-root", str(demo), "--max-boxes", "1", "--overwrite")
    assert "is there" not in capsys.readouterr().out


def test_other_images_under_the_same_names_are_not_taken_for_the_old_ones(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name, corner in (("a", 10), ("b", 40)):
        image = Image.new("RGB", (100, 100), "white")
        image.paste("red", (corner, corner, corner + 30, corner + 30))
        image.save(images / f"{name}.png")
    first = run(tmp_path, "--images", str(images))
    Image.effect_noise((100, 100), 64).save(images / "a.png")
    with pytest.raises(InputError, match="not made in this way of these images: --overwrite"):
        run(tmp_path, "--images", str(images))
    assert run(tmp_path, "--images", str(images), "--overwrite")["a"] != first["a"]


def test_wrong_input_is_answered(tmp_path, demo):
    for flags, part in (
        (["--images", str(tmp_path / "none")], "no folder"),
        (["--images", str(tmp_path)], "has no image"),
        (["--cirr-root", str(tmp_path / "none")], "`data_path`"),
        (["--cirr-root", str(demo), "--confidence", "2"], "--confidence"),
        (["--images", str(demo), "--all-splits"], "--all-splits"),
    ):
        with pytest.raises(InputError, match=part):
            generate([*flags, "--output", str(tmp_path / "b.json")])
    for suffix in ("png", "jpg"):
        Image.new("RGB", (9, 9)).save(tmp_path / f"a.{suffix}")
    with pytest.raises(InputError, match="share a name"):
        generate(["--images", str(tmp_path), "--output", str(tmp_path / "b.json")])


def test_example_boxes(demo, tmp_path):
    flags = ["--cirr-root", str(demo), "--output", str(tmp_path / "b.json"), "--boxes", "2"]
    make_example([*flags, "--kind", "random"])
    first = load_boxes(tmp_path / "b.json")
    assert len(first) == 24
    assert all(len(regions) == 2 for regions in first.values())
    make_example([*flags, "--kind", "random"])
    assert load_boxes(tmp_path / "b.json") == first
    make_example([*flags, "--kind", "grid"])
    assert [r.box for r in load_boxes(tmp_path / "b.json")["train-0-0-img0"]] == [
        (0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5), (0, 0.5, 0.5, 1), (0.5, 0.5, 1, 1)]  # fmt: skip
    make_example([*flags, "--kind", "ground-truth"])
    assert load_boxes(tmp_path / "b.json") == load_boxes(demo / "boxes" / "cirr_boxes_train.json")
    (tmp_path / "cirr" / "image_splits").mkdir(parents=True)
    (tmp_path / "cirr" / "image_splits" / "split.rc2.train.json").write_text('{"a": "./train/0/a.png"}')
    with pytest.raises(InputError, match="no exact boxes"):
        make_example(["--cirr-root", str(tmp_path), "--kind", "ground-truth"])


# --- YOLO -------------------------------------------------------------------------------------------------------------


def test_yolo_without_ultralytics_says_how_to_get_it(demo, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(InputError, match="pip install ultralytics"):
        run(tmp_path, "--cirr-root", str(demo), "--method", "yolo")


@pytest.fixture
def yolo_weights(tmp_path):
    """A YOLO of random weights, saved as ultralytics saves; skips where it is not installed."""
    pytest.importorskip("ultralytics", reason="ultralytics is not installed: pip install ultralytics")
    ultralytics = import_ultralytics()
    model = ultralytics.YOLO("yolov8n.yaml")
    model.save(str(tmp_path / "random.pt"))
    return tmp_path / "random.pt"


def test_yolo_for_real(demo, yolo_weights, tmp_path):
    flags = ["--cirr-root", str(demo), "--yolo-weights", str(yolo_weights), "--device", "cpu", "--batch-size", "5"]
    any_score = [*flags, "--confidence", "0", "--min-area", "0"]
    found = run(tmp_path, *any_score, "--method", "yolo")
    regions = [region for of_image in found.values() for region in of_image]
    assert len(found) == 24
    assert regions, "random weights score everything about equally: some boxes pass a confidence of 0"
    assert all(region.label and 0 <= region.score <= 1 for region in regions)
    nothing = run(tmp_path, *flags, "--confidence", "1", "--method", "yolo", name="none.json")
    assert not any(nothing.values())
    hybrid = run(tmp_path, *flags, "--confidence", "1", "--method", "hybrid", name="hybrid.json")
    assert hybrid == run(tmp_path, "--cirr-root", str(demo), name="saliency.json")


def test_a_pickle_is_refused(demo, yolo_weights, tmp_path):
    import pickle

    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    evil = tmp_path / "evil.pt"
    evil.write_bytes(pickle.dumps({"model": Code()}))
    with pytest.raises(InputError, match="cannot be used"):
        run(tmp_path, "--cirr-root", str(demo), "--method", "yolo", "--yolo-weights", str(evil))
    assert not (tmp_path / "ran").exists()


def test_boxes_that_are_made_are_found_on_a_disk_that_can_be_read_alone(demo, small_disk):
    flags = ["--cirr-root", str(demo), "--num-workers", "0", "--output", str(small_disk("4m") / "boxes.json")]
    (path,) = generate(flags)
    subprocess.run(["mount", "-o", "remount,ro", str(path.parent)], check=True)
    assert generate(flags) == [path]
    with pytest.raises(InputError, match="Read-only file system"):
        generate([*flags, "--overwrite"])


def test_a_disk_that_is_full_of_boxes_is_one_line(demo, small_disk):
    disk = small_disk("64k")
    flags = ["--cirr-root", str(demo), "--num-workers", "0", "--output", str(disk / "boxes.json")]
    (disk / "filler").write_bytes(bytes(64 * 1024 - 4096))
    with pytest.raises(InputError, match=r"boxes\.json\.progress cannot be written \(No space left on device\): free"):
        generate(flags)
    (disk / "filler").unlink()
    assert len(load_boxes(*generate(flags))) == 24
