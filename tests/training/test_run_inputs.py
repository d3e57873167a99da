"""What a run reads is not to change under it: annotations, boxes, backbone; and paths hold from any folder."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from training_flags import training_flags, with_regions

import blip_fine_tune_2
import blip_validate
from sprc.core.command_line import absolute, user_path
from sprc.core.errors import InputError
from sprc.retrieval.checkpoint_run import SETTINGS_FILE
from sprc.training.config import STATE_FILE, TrainConfig
from sprc.training.run_inputs import BACKBONE, BOXES, file_fingerprint, input_fingerprints
from sprc.training.run_state import CSV_FILES, read_state, restore_csv_files

TRAIN, VAL = "cirr/captions/cap.rc2.train.json", "cirr/captions/cap.rc2.val.json"
SPLIT = "cirr/image_splits/split.rc2.val.json"


def as_another_process() -> None:
    file_fingerprint.cache_clear()


def trained(data: Path, yaml: str, output: Path, **settings) -> tuple[list[str], Path]:
    """The flags of a run, and its folder."""
    flags = training_flags(data, yaml, output, save_best=True, **settings)
    blip_fine_tune_2.main(flags)
    (folder,) = output.iterdir()
    as_another_process()
    return flags, folder


def rewritten(path: Path, change) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))


CHANGES = {
    "another caption": (TRAIN, lambda entries: [entries[0] | {"caption": "another"}, *entries[1:]]),
    "half of the triplets": (TRAIN, lambda entries: entries[: len(entries) // 2]),
    "a validation set that was cut": (VAL, lambda entries: entries[:5]),
    "images in another order": (SPLIT, lambda places: dict(reversed(places.items()))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_does_not_go_on(demo_copy, small_yaml, tmp_path, capsys, change):
    flags, folder = trained(demo_copy, small_yaml, tmp_path / "runs")
    assert blip_fine_tune_2.parse_config([*flags, "--resume", "auto"])[1] == folder
    as_another_process()
    place, alter = CHANGES[change]
    rewritten(demo_copy / place, alter)
    with pytest.raises(InputError, match=f"{place} in .*demo are not those of that run: give its data by `data_path`"):
        blip_fine_tune_2.main(["--dataset", "CIRR", "--resume", str(folder), "--num-epochs", "2"])
    capsys.readouterr()
    assert blip_fine_tune_2.parse_config([*flags, "--resume", "auto"])[1] is None
    assert f"a new run begins; {folder.name} differs in {place}" in capsys.readouterr().out


def test_another_dataset_does_not_go_on_and_a_moved_one_does(demo_copy, small_yaml, tmp_path):
    from sprc.demo.dataset import DemoSettings, make_demo_dataset

    _, folder = trained(demo_copy, small_yaml, tmp_path / "runs")
    resume = ["--dataset", "CIRR", "--resume", str(folder), "--num-epochs", "2", "--data-path"]
    make_demo_dataset(tmp_path / "other", DemoSettings(24, 40, 18, 30, 60, 20, seed=4))
    with pytest.raises(InputError, match="are not those of that run"):
        blip_fine_tune_2.main([*resume, str(tmp_path / "other")])
    moved = demo_copy.rename(tmp_path / "moved")
    as_another_process()
    blip_fine_tune_2.main([*resume, str(moved)])
    assert (folder / "train_metrics.csv").read_text().count("\n") == 3


def test_fashioniq_has_the_files_that_a_training_reads(tmp_path):
    config = TrainConfig(dataset="FashionIQ", data_path=tmp_path)
    names = [name for name in input_fingerprints(config) if name not in (BOXES, BACKBONE)]
    assert names[:3] == [f"captions/cap.{kind}.train.json" for kind in ("dress", "shirt", "toptee")]
    assert names[3:5] == ["captions/cap.dress.val.json", "image_splits/split.dress.val.json"]
    assert len(names) == 9


def test_a_corrupt_settings_file_of_an_old_run_stops_nothing(demo, small_yaml, tmp_path, capsys):
    flags, folder = trained(demo, small_yaml, tmp_path)
    old = tmp_path / folder.name.replace("_20", "_old_20")
    shutil.copytree(folder, old)
    for content in ("{", "[]", '{"inputs": 3}', ""):
        (old / SETTINGS_FILE).write_text(content)
        os.utime(old / STATE_FILE)
        assert blip_fine_tune_2.parse_config([*flags, "--resume", "auto"])[1] == folder
    assert f"leaves out {old}" in capsys.readouterr().out
    settings = json.loads((folder / SETTINGS_FILE).read_text())
    for entry in ({"data_path": 5}, {"data_path": ["a"]}, {"data_path": "a\0b"}, {"backbone": {}}, {"dataset": None}):
        (old / SETTINGS_FILE).write_text(json.dumps(settings | entry))
        assert blip_fine_tune_2.parse_config([*flags, "--resume", "auto"])[1] == folder
    shutil.rmtree(folder)
    assert blip_fine_tune_2.parse_config([*flags, "--resume", "auto"])[1] is None
    assert "a new run begins" in capsys.readouterr().out


# --- paths ------------------------------------------------------------------------------------------------------------


def test_a_relative_backbone_and_dataset_hold_from_elsewhere(demo_copy, small_yaml, tmp_path, monkeypatch):
    """Also if the YAML file and the vocabulary beside it are edited or lost after the training."""
    place = tmp_path / "mine"
    place.mkdir()
    vocabulary = Path("src/lavis/configs/models/blip2/tiny_vocab.txt").read_text()
    (place / "words.txt").write_text(vocabulary)
    (place / "m.yaml").write_text(Path(small_yaml).read_text().replace("tiny_vocab.txt", "words.txt"))
    monkeypatch.chdir(place)
    _, folder = trained(Path("../demo"), "m.yaml", Path("runs"))
    folder = folder.absolute()
    monkeypatch.chdir("/")
    evaluate = ["--dataset", "CIRR", "--model-path", str(folder / "saved_models/tuned_clip_arithmetic.pt")]
    evaluate += ["--data-path", str(demo_copy), "--num-workers", "0", "--device", "cpu"]
    before = blip_validate.main(evaluate)
    shutil.rmtree(place / "words.txt", ignore_errors=True)
    (place / "m.yaml").write_text("embed_dim: 3")
    assert blip_validate.main(evaluate) == before
    blip_fine_tune_2.main(["--dataset", "CIRR", "--resume", str(folder), "--num-epochs", "2"])
    assert (folder / "train_metrics.csv").read_text().count("\n") == 3
    with pytest.raises(InputError, match=r"`backbone` .*m\.yaml \(the run: "):
        blip_fine_tune_2.main(["--dataset", "CIRR", "--resume", str(folder), "--backbone", str(place / "m.yaml")])


@pytest.mark.parametrize("place", ["../words.txt", "words"])
def test_a_vocabulary_is_kept_within_the_run(demo, small_yaml, tmp_path, place):
    """A name that leads out of the YAML file's folder does not lead out of the run's; and a folder is kept too."""
    yaml, runs = tmp_path / "mine" / "m.yaml", tmp_path / "runs"
    words = yaml.parent / place / "vocab.txt" if place == "words" else tmp_path / "words.txt"
    for folder in (yaml.parent, words.parent, runs):
        folder.mkdir(exist_ok=True)
    shutil.copy("src/lavis/configs/models/blip2/tiny_vocab.txt", words)
    size = words.read_text().count("\n") + 1  # with [DEC]: of a folder all of them are used
    model = Path(small_yaml).read_text().replace("tiny_vocab.txt", place)
    yaml.write_text(model.replace("vocab_size: 1024", f"vocab_size: {size}"))
    (runs / "words.txt").write_text("of someone else")
    blip_fine_tune_2.main(training_flags(demo, str(yaml), runs, save_best=True))
    assert (runs / "words.txt").read_text() == "of someone else"
    words.unlink()
    (folder,) = runs.glob("clip*")
    blip_fine_tune_2.main(["--dataset", "CIRR", "--resume", str(folder), "--num-epochs", "2"])
    assert (folder / "train_metrics.csv").read_text().count("\n") == 3


def test_a_backbone_that_was_edited_begins_another_run(demo, small_yaml, tmp_path, capsys):
    yaml = Path(shutil.copy(small_yaml, tmp_path / "m.yaml"))
    flags, folder = trained(demo, str(yaml), tmp_path / "runs")
    assert blip_fine_tune_2.parse_config([*flags, "--resume", "auto"])[1] == folder
    yaml.write_text(yaml.read_text().replace("embed_dim: 16", "embed_dim: 8"))
    as_another_process()
    assert blip_fine_tune_2.parse_config([*flags, "--resume", "auto"])[1] is None
    assert "differs in the backbone's YAML file" in capsys.readouterr().out


def test_a_home_folder_is_found_in_every_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["--data-path=~/d", "--box-file=~/b.json", "--output-folder=~/o", "--weights=~/w.pt", "--backbone=~/m.yaml",
             "--feature-cache=~/f", "--use-region-loss"]  # fmt: skip
    config, _ = blip_fine_tune_2.parse_config(["--dataset", "CIRR", *words])
    assert (config.data_path, config.box_file, config.output_folder) == tuple(
        tmp_path / name for name in ("d", "b.json", "o")
    )
    assert (config.weights, config.backbone, config.feature_cache) == tuple(
        str(tmp_path / name) for name in ("w.pt", "m.yaml", "f")
    )
    with pytest.raises(InputError, match=rf"`resume` {tmp_path}/run: there is no"):
        blip_fine_tune_2.parse_config(["--dataset", "CIRR", "--resume=~/run"])
    assert (user_path("~/x"), user_path("x")) == (tmp_path / "x", Path("x"))
    with pytest.raises(InputError, match="write the whole path"):
        absolute("~nobody_of_this_name/x")


def test_words_stay_words():
    config = TrainConfig(dataset="CIRR", weights="random")
    assert (config.weights, config.backbone, config.feature_cache) == ("random", "pretrain", "off")


def test_flags_that_a_run_may_change_are_taken_alone(demo, small_yaml, tmp_path):
    """`--box-file` without `--use-region-loss`, `--cache-device` without `--feature-cache`: the run has both."""
    moved = Path(shutil.copy(demo / "boxes" / "cirr_boxes_train.json", tmp_path / "moved.json"))
    settings = with_regions(demo) | {"feature_cache": tmp_path / "features"}
    _, folder = trained(demo, small_yaml, tmp_path / "runs", **settings)
    resume = ["--dataset", "CIRR", "--resume", str(folder), "--num-epochs", "2"]
    config, _ = blip_fine_tune_2.parse_config([*resume, "--box-file", str(moved), "--cache-device", "cuda"])
    assert (config.box_file, config.cache_device, config.use_region_loss) == (moved, "cuda", True)
    blip_fine_tune_2.main([*resume, "--box-file", str(moved)])
    rewritten(moved, lambda boxes: {name: [] for name in boxes})
    as_another_process()
    with pytest.raises(InputError, match=r"moved\.json holds other boxes than that run was trained with"):
        blip_fine_tune_2.main([*resume, "--box-file", str(moved)])


# --- states that this project has not written -------------------------------------------------------------------------


def test_names_in_a_state_never_become_paths(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    written = tmp_path / "written"
    good = dict.fromkeys(CSV_FILES)
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    for texts in (
        {str(victim): None, str(written): "text"},
        good | {str(victim): None},
        good | {"../written": "text"},
        {CSV_FILES[0]: None},
        good | {CSV_FILES[0]: 5},
    ):
        with pytest.raises(InputError, match="it was not written by this project"):
            restore_csv_files(texts, run_folder)
    assert victim.read_text() == "kept"
    assert not written.exists() and not list(run_folder.iterdir())
    restore_csv_files(good | {CSV_FILES[0]: "a\n"}, run_folder)
    assert [path.name for path in run_folder.iterdir()] == [CSV_FILES[0]]


def test_a_state_of_another_model_is_refused(demo, small_yaml, tmp_path):
    _, folder = trained(demo, small_yaml, tmp_path)
    state = read_state(folder)
    state["model"] |= {"foreign": torch.zeros(2)}
    del state["model"]["temp"]
    torch.save(state, folder / STATE_FILE)
    with pytest.raises(InputError, match=rf"{STATE_FILE} does not fit this model .*missing: temp.*unexpected: foreign"):
        blip_fine_tune_2.main(["--dataset", "CIRR", "--resume", str(folder), "--num-epochs", "2"])
    torch.save(state | {"config": 3}, folder / STATE_FILE)
    with pytest.raises(InputError, match="is not the state of a run"):
        blip_fine_tune_2.main(["--dataset", "CIRR", "--resume", str(folder)])
