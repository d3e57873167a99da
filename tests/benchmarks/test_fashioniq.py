"""FashionIQ end to end: the real val annotations over generated images, the preset, the captions, the protocol."""

import csv
import json
import os
import shutil
from collections import Counter

import pytest
import torch
from PIL import Image

import blip_fine_tune_2
import blip_validate
from data_utils import FashionIQDataset
from sprc.benchmarks.fashioniq import TYPES, FashionIQ, join_captions, join_captions_randomly, summary
from sprc.core.errors import InputError
from sprc.core.runtime import Runtime, choose_runtime
from sprc.data.image_check import check_images
from sprc.data.preprocess import targetpad_transform
from sprc.retrieval.evaluation import Evaluator
from sprc.training.config import TrainConfig
from sprc.training.optimization import Optimization

PREPROCESS = targetpad_transform(1.25, 56)
COLUMNS = [f"{kind}_recall_at{k}" for kind in TYPES for k in (10, 50)]
COLUMNS += ["average_recall_at10", "average_recall_at50", "average_recall"]


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def captions_of(kind: str, count: int) -> list[dict]:
    def entry(i):
        wanted = f"{kind}{(7 * i + 3) % (2 * count)}"
        return {"candidate": f"{kind}{i}", "target": wanted, "captions": [f"is more {kind}.", "Has longer sleeves"]}

    return [entry(i) for i in range(count)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """12 entries a type for training and validation, over coloured images, every other one a .jpg. Read only."""
    root = tmp_path_factory.mktemp("fashioniq")
    (root / "images").mkdir()
    for kind in TYPES:
        for split in ("train", "val"):
            write_json(root / "captions" / f"cap.{kind}.{split}.json", captions_of(kind, 12))
            write_json(root / "image_splits" / f"split.{kind}.{split}.json", [f"{kind}{i}" for i in range(30)])
        queries = [{"candidate": f"{kind}{i}", "captions": ["a", "b"]} for i in range(5)]
        write_json(root / "captions" / f"cap.{kind}.test.json", queries)
        write_json(root / "image_splits" / f"split.{kind}.test.json", [f"{kind}{i}" for i in range(5)])
        for i in range(30):
            colour = (8 * i, 250 - 8 * i, 60 * TYPES.index(kind))
            Image.new("RGB", (20 + i, 30), colour).save(root / "images" / f"{kind}{i}{('.png', '.jpg')[i % 2]}")
    return root


def open_val(root, kind, mode, gallery="split"):
    return FashionIQDataset("val", [kind], mode, PREPROCESS, data_path=root, gallery=gallery)


def test_tuples(made):
    triplets = FashionIQDataset("train", list(TYPES), "relative", PREPROCESS, data_path=made)
    reference, target, captions = triplets[1]
    assert len(triplets) == 36
    assert reference.shape == target.shape == (3, 56, 56)
    assert captions == ["is more dress.", "Has longer sleeves"]
    assert open_val(made, "shirt", "relative")[0] == ("shirt0", "shirt3", ["is more shirt.", "Has longer sleeves"])
    name, image, captions = FashionIQDataset("test", ["dress"], "relative", PREPROCESS, data_path=made)[2]
    assert (name, image.shape, captions) == ("dress2", (3, 56, 56), ["a", "b"])
    gallery = open_val(made, "toptee", "classic")
    assert len(gallery) == 30
    assert gallery[1][0] == "toptee1"
    check_images(gallery)


def test_boxes_come_with_the_training_triplets(made, tmp_path):
    boxes = {f"{kind}{i}": [[0.1, 0.1, 0.9, 0.9]] * (i % 3) for kind in TYPES for i in range(30)}
    write_json(tmp_path / "boxes.json", boxes)
    triplets = FashionIQDataset("train", TYPES, "relative", PREPROCESS, tmp_path / "boxes.json", made)
    _, _, captions, ref_boxes, tgt_boxes = triplets[1]  # dress1 -> dress10
    assert [len(ref_boxes), len(tgt_boxes)] == [1, 1]
    assert [len(boxes) for boxes in triplets[2][3:]] == [2, 2]
    assert captions == ["is more dress.", "Has longer sleeves"]


ENTRY = {"candidate": "a", "target": "b", "captions": ["x", "y"]}


def test_png_and_jpg_and_png_first(made, tmp_path):
    gallery = open_val(made, "dress", "classic")
    assert gallery.image_paths["dress0"] == "images/dress0.png"
    assert gallery.image_paths["dress1"] == "images/dress1.jpg"
    root = shutil.copytree(made, tmp_path / "copy")
    Image.new("RGB", (9, 9)).save(root / "images" / "dress1.png")
    assert open_val(root, "dress", "classic").image_paths["dress1"] == "images/dress1.png"
    (root / "images" / "dress1.png").unlink()
    (root / "images" / "dress1.jpg").unlink()
    with pytest.raises(InputError, match=r"1 of 30 images of FashionIQ val .*images/dress1"):
        check_images(open_val(root, "dress", "classic"))


def test_suffixes_in_any_case_and_the_first_that_is_there(made, tmp_path):
    root = shutil.copytree(made, tmp_path / "copy")
    images = root / "images"
    for before, after in (("dress0.png", "dress0.JPG"), ("dress1.jpg", "dress1.jpeg"), ("dress2.png", "dress2.PNG")):
        (images / before).rename(images / after)
    gallery = open_val(root, "dress", "classic")
    check_images(gallery)
    assert [gallery.image_paths[f"dress{i}"] for i in range(3)] == [
        "images/dress0.JPG", "images/dress1.jpeg", "images/dress2.PNG"]  # fmt: skip
    assert gallery[0][1].shape == (3, 56, 56)
    for added, found in (("dress0.JPEG", "dress0.JPG"), ("dress0.PNG", "dress0.PNG"), ("dress0.jpeg", "dress0.jpeg")):
        shutil.copy(images / "dress1.jpeg", images / added)
        assert open_val(root, "dress", "classic").image_paths["dress0"] == f"images/{found}"
    (images / "dress3.jpg").rename(images / "dress3.webp")
    with pytest.raises(InputError, match=r"1 of 30 .* first images/dress3\.png \(there is dress3\.webp: rename it\)"):
        check_images(open_val(root, "dress", "classic"))


def test_what_is_no_file_is_not_taken_before_a_file(made, tmp_path):
    root = shutil.copytree(made, tmp_path / "copy")
    (root / "images" / "dress1.png").symlink_to(tmp_path / "nowhere")
    (root / "images" / "dress3.png").mkdir()
    gallery = open_val(root, "dress", "classic")
    check_images(gallery)
    assert [gallery.image_paths[f"dress{i}"] for i in (1, 3)] == ["images/dress1.jpg", "images/dress3.jpg"]
    (root / "images" / "dress3.jpg").unlink()
    with pytest.raises(InputError, match=r"no regular file\), first images/dress3\.png"):
        check_images(open_val(root, "dress", "classic"))


def test_galleries_of_several_types_are_counted_together(made, tmp_path):
    root = shutil.copytree(made, tmp_path / "copy")
    for kind in TYPES:
        (root / "images" / f"{kind}4.png").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"^3 of 90 images of FashionIQ val cannot be read \(it is empty\), first images/d"
    ):
        check_images(*(open_val(root, kind, "classic") for kind in TYPES))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("captions/cap.shirt.val.json", [{"candidate": "a", "captions": ["x", "y"]}], "entry 0 lacks target"),
        ("captions/cap.shirt.val.json", [{"candidate": "a", "target": "b", "captions": ["x"]}], "two texts"),
        (
            "captions/cap.shirt.val.json",
            [{**ENTRY, "candidate": 1}],
            r"names images \[1, 'b'\]: write names without a path",
        ),
        ("captions/cap.shirt.val.json", [{**ENTRY, "candidate": "../a"}], "write names without a path"),
        ("captions/cap.shirt.val.json", [{**ENTRY, "target": "images\\b"}], "write names without a path"),
        ("captions/cap.shirt.val.json", [{**ENTRY, "captions": ["x", "\ud83d"]}], "entry 0, 'captions', 1 holds half"),
        ("image_splits/split.shirt.val.json", ["a", "b\\c"], "write names without a path"),
        ("image_splits/split.shirt.val.json", ["a", ""], "write names without a path"),
        ("captions/cap.shirt.val.json", ["a"], "not an object"),
        ("captions/cap.shirt.val.json", [], "holds no caption"),
        ("captions/cap.shirt.val.json", {}, "JSON list"),
        ("image_splits/split.shirt.val.json", ["a", 3], "lists 3"),
        ("image_splits/split.shirt.val.json", [], "is empty"),
    ],
)
def test_wrong_files_are_named(made, tmp_path, file, content, message):
    root = shutil.copytree(made, tmp_path / "copy")
    write_json(root / file, content)
    with pytest.raises(InputError, match=message) as error:
        open_val(root, "shirt", "classic")
    assert str(root / file) in str(error.value)


@pytest.mark.parametrize("key", ["candidate", "target"])
@pytest.mark.parametrize("gallery", ["split", "captions"])
def test_an_image_that_no_list_has_is_named(made, tmp_path, key, gallery):
    root = shutil.copytree(made, tmp_path / "copy")
    path = root / "captions" / "cap.shirt.val.json"
    entries = json.loads(path.read_text())
    entries[3][key] = "shirt99"
    write_json(path, entries)
    message = r"cap\.shirt\.val\.json: entry 3 names image 'shirt99', which .*split\.shirt\.val\.json does not list"
    with pytest.raises(InputError, match=message):
        open_val(root, "shirt", "classic", gallery)


def test_wrong_arguments_are_answered(made, tmp_path):
    for split, kinds, mode in (("dev", ["dress"], "classic"), ("val", ["hat"], "classic"), ("val", [], "classic"),
                               ("val", ["dress"], "both")):  # fmt: skip
        with pytest.raises(InputError, match="FashionIQDataset"):
            FashionIQDataset(split, kinds, mode, PREPROCESS, data_path=made)
    with pytest.raises(InputError, match="`data_path`"):
        FashionIQDataset("val", ["dress"], "classic", PREPROCESS, data_path=tmp_path / "nowhere")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_cannot_be_reached_is_answered(made, tmp_path):
    closed = tmp_path / "closed"
    shutil.copytree(made, closed / "data")
    closed.chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=r"no folder .*`data_path`"):
            open_val(closed / "data", "dress", "classic")
    finally:
        os.seteuid(0)


def test_captions_are_joined_in_four_ways():
    pair = ["is red?", " has dots. "]
    assert join_captions(pair) == "is red and has dots"
    torch.manual_seed(0)
    found = join_captions_randomly([pair] * 4000)
    counts = Counter(found)
    assert set(counts) == {"is red and has dots", "has dots and is red", "is red", "has dots"}
    assert all(900 < count < 1100 for count in counts.values())
    torch.manual_seed(0)
    assert join_captions_randomly([pair] * 4000) == found


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_the_preset_is_upstreams(epochs):
    config = TrainConfig(dataset="FashionIQ", num_epochs=epochs)
    assert config.loss_weights() == {"loss_itc": 1.0, "loss_rtc": 1.0, "loss_align": 1.0}
    assert TrainConfig(dataset="fashioniq").plan.num_epochs == 30
    assert config.plan.learning_rate == 2e-5
    assert TrainConfig(dataset="fashioniq", loss_rtc=0.0).loss_weights()["loss_rtc"] == 0
    preset = config.preset
    assert (preset.tag, preset.monitor, preset.best_file) == ("fiq", "average_recall", "tuned_clip_best.pt")
    model = torch.nn.Linear(2, 2)
    found = Optimization(model, config, 40, Runtime(torch.device("cpu"), torch.float32))
    rates = []
    for _ in range(40 * epochs):
        rates.append(found.learning_rate)
        model(torch.ones(2)).sum().backward()
        found.step()
    assert rates[0] == pytest.approx(2e-7)
    assert max(rates) == pytest.approx(2e-5, rel=1e-3)
    assert rates.index(max(rates)) == pytest.approx(40 * (1.5 if epochs > 1 else 0.75), abs=1.5)


def test_the_summary_averages_over_types():
    metrics = {kind: {"recall_at10": 10.0 * i, "recall_at50": 30.0 * i} for i, kind in enumerate(TYPES)}
    row = summary(metrics)
    assert list(row) == COLUMNS
    assert (row["average_recall_at10"], row["average_recall_at50"], row["average_recall"]) == (10, 30, 20)


def run_flags(made, small_yaml, *flags) -> list[str]:
    base = {"--dataset": "FashionIQ", "--data-path": made, "--backbone": small_yaml, "--num-workers": 0}
    return [str(part) for pair in (base | {"--device": "cpu"}).items() for part in pair] + list(flags)


def test_train_and_validate(made, small_yaml, tmp_path, capsys):
    flags = run_flags(made, small_yaml, "--batch-size", "8", "--num-epochs", "2", "--learning-rate", "1e-3")
    blip_fine_tune_2.main([*flags, "--save-best", "--output-folder", str(tmp_path / "models")])
    said = capsys.readouterr().out
    assert "ranked: every image of the split list" in said
    assert "dress: 12 queries, 30 images" in said
    (folder,) = (tmp_path / "models").iterdir()
    assert folder.name.startswith("clip_finetuned_on_fiq_blip2_cir_align_prompt_")
    with (folder / "validation_metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["epoch", *COLUMNS]
    best = folder / "saved_models" / "tuned_clip_best.pt"
    epoch = torch.load(best, weights_only=True)["epoch"]
    validation = run_flags(made, small_yaml, "--model-path", str(best))
    found = blip_validate.main(validation)
    assert {name: str(value) for name, value in found.items()} == {name: rows[epoch][name] for name in COLUMNS}
    smaller = blip_validate.main([*validation, "--gallery", "captions"])
    assert "ranked: the images that occur in captions" in capsys.readouterr().out
    assert all(smaller[name] >= found[name] for name in COLUMNS)


def test_two_runs_are_equal(made, small_yaml, tmp_path):
    for name in ("one", "two"):
        torch.manual_seed(torch.seed())
        blip_fine_tune_2.main(run_flags(made, small_yaml, "--batch-size", "8", "--num-epochs", "1", "--output-folder",
                                        str(tmp_path / name)))  # fmt: skip
    first, second = (next((tmp_path / name).iterdir()) for name in ("one", "two"))
    for name in ("train_metrics.csv", "validation_metrics.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_protocol_is_fashioniqs_own():
    with pytest.raises(InputError, match="`gallery` captions is not for CIRR"):
        TrainConfig(dataset="CIRR", gallery="captions")


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """The real val annotations over generated images: one small file, linked under every name."""
    root = tmp_path_factory.mktemp("real")
    for folder in ("captions", "image_splits"):
        (root / folder).symlink_to(shared / "fashioniq" / folder)
    (root / "images").mkdir()
    sources = [root / f"source{i}" for i in range(8)]
    for i, source in enumerate(sources):
        Image.new("RGB", (30 + 5 * i, 40), (30 * i, 200 - 20 * i, 90)).save(source, "PNG")
    names = {name for kind in TYPES for name in open_lists(shared, kind)}
    for i, name in enumerate(sorted(names)):
        (root / "images" / f"{name}{('.png', '.jpg')[i % 2]}").symlink_to(sources[i % 8])
    return root


def open_lists(shared, kind) -> list[str]:
    return json.loads((shared / "fashioniq" / "image_splits" / f"split.{kind}.val.json").read_text())


@pytest.mark.integration
def test_real_annotations(real):
    sizes = {}
    for kind in TYPES:
        for gallery in ("split", "captions"):
            found = open_val(real, kind, "classic", gallery)
            check_images(found)
            sizes[kind, gallery] = (len(found.queries), len(found))
    assert sizes == {
        ("dress", "split"): (2017, 3817), ("dress", "captions"): (2017, 2628),
        ("shirt", "split"): (2038, 6346), ("shirt", "captions"): (2038, 3089),
        ("toptee", "split"): (1961, 5373), ("toptee", "captions"): (1961, 2902),
    }  # fmt: skip
    assert open_val(real, "dress", "relative")[0][2] == ["is shiny and silver with shorter sleeves", "fit and flare"]
    assert open_val(real, "dress", "classic")[5][1].shape == (3, 56, 56)


@pytest.mark.integration
def test_real_annotations_ranked_the_slow_way(real):
    """Recalls by type of seeded scores, against sorting each row; the reference stays in the ranking."""
    validation = FashionIQ(real).validation(PREPROCESS)
    found, expected = {}, {}
    for kind, task in validation.tasks.items():
        entries = json.loads((real / "captions" / f"cap.{kind}.val.json").read_text())
        scores = torch.rand(len(task.queries), len(task.gallery), generator=torch.Generator().manual_seed(0))
        column_of = {name: i for i, name in enumerate(task.gallery.names)}
        targets = torch.tensor([column_of[entry["target"]] for entry in entries])
        lifted = torch.rand(len(targets), generator=torch.Generator().manual_seed(1)) * 0.02
        scores[torch.arange(len(targets)), targets] = 1 - lifted
        found[kind] = task.metrics(scores)
        order = scores.argsort(dim=1, descending=True, stable=True)
        _, ranks = (order == targets[:, None]).nonzero(as_tuple=True)
        expected[kind] = {f"recall_at{k}": 100 * (ranks < k).double().mean().item() for k in (10, 50)}
        assert task.reference_names == [entry["candidate"] for entry in entries]
    assert found == {kind: pytest.approx(values) for kind, values in expected.items()}
    assert 0 < validation.summary(found)["average_recall"] < 100


@pytest.mark.slow
def test_real_annotations_through_the_model(real, small_yaml):
    torch.manual_seed(0)
    from lavis.models import load_model_and_preprocess

    model, _, texts = load_model_and_preprocess("blip2_cir_align_prompt", small_yaml, is_eval=True)
    config = TrainConfig(dataset="FashionIQ", num_workers=0)
    evaluator = Evaluator(model, texts["eval"], config.scoring, choose_runtime("cpu", "fp32"))
    metrics = evaluator.evaluate(FashionIQ(real).validation(PREPROCESS))
    assert list(metrics) == COLUMNS
    assert all(0 <= value <= 100 for value in metrics.values())
