"""The scripts as a user calls them: train -> validate -> submit, twice the same, and what --help says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import SOURCE
from PIL import Image

import blip_fine_tune_2
import blip_validate
import cirr_test_submission
from sprc.benchmarks.submission import read_submission
from sprc.core.errors import InputError
from sprc.demo.dataset import DemoSettings, make_demo_dataset
from sprc.retrieval.checkpoint_run import evaluation_config
from sprc.training.config import TrainConfig

UPSTREAM_FLAGS = (
    "--dataset --data-path --num-workers --num-epochs --blip-model-name --backbone --learning-rate --batch-size"
    " --loss-align --loss-rtc --loss-itm --validation-frequency --target-ratio --transform --save-training --save-best"
    " --save-memory"
)


def train(data_path, small_yaml, output, *flags) -> Path:
    """Train by the command-line function; returns the run's folder."""
    torch.manual_seed(torch.seed())  # the result must not depend on the state it finds
    base = [
        "--dataset",
        "cirr",
        "--data-path",
        str(data_path),
        "--backbone",
        small_yaml,
        "--output-folder",
        str(output),
    ]
    sizes = [
        "--batch-size",
        "8",
        "--num-epochs",
        "2",
        "--learning-rate",
        "1e-3",
        "--num-workers",
        "0",
        "--device",
        "cpu",
    ]
    blip_fine_tune_2.main([*base, *sizes, *flags])
    (folder,) = output.iterdir()
    return folder


def evaluation_flags(model_path, data_path, small_yaml) -> list[str]:
    flags = {"--model-path": model_path, "--data-path": data_path, "--backbone": small_yaml, "--num-workers": 0}
    return [str(part) for pair in (flags | {"--device": "cpu"}).items() for part in pair]


def test_train_validate_submit(demo, small_yaml, tmp_path, capsys):
    folder = train(demo, small_yaml, tmp_path / "models", "--save-best", "--save-training")
    assert folder.name.startswith("clip_finetuned_on_cirr_blip2_cir_align_prompt_")
    assert "best epoch" in capsys.readouterr().out
    best = folder / "saved_models" / "tuned_clip_arithmetic.pt"
    epoch = torch.load(best, weights_only=True)["epoch"]
    lines = (folder / "validation_metrics.csv").read_text().splitlines()
    recorded = dict(zip(lines[0].split(","), map(float, lines[1 + epoch].split(",")), strict=True))
    metrics = blip_validate.main(["--dataset", "CIRR", *evaluation_flags(best, demo, small_yaml)])
    assert {"epoch": epoch} | metrics == pytest.approx(recorded)

    flags = [*evaluation_flags(best, demo, small_yaml), "--output-folder", str(tmp_path / "submission")]
    paths = cirr_test_submission.main(flags)
    assert [path.name for path in paths] == [
        "recall_submission_blip2_cir_align_prompt_2.json",
        "recall_subset_submission_blip2_cir_align_prompt_2.json",
    ]
    assert [len(read_submission(path)) for path in paths] == [22, 22]
    hyperparameters = json.loads((folder / "training_hyperparameters.json").read_text())
    assert hyperparameters["learning_rate"] == 1e-3


def test_two_runs_are_equal_to_the_last_bit_whatever_the_workers(demo, small_yaml, tmp_path):
    first = train(demo, small_yaml, tmp_path / "one", "--save-training")
    second = train(demo, small_yaml, tmp_path / "two", "--save-training", "--num-workers", "2")
    for name in ("train_metrics.csv", "validation_metrics.csv", "saved_models/tuned_clip_last.pt"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    third = train(demo, small_yaml, tmp_path / "three", "--seed", "1")
    assert (first / "train_metrics.csv").read_bytes() != (third / "train_metrics.csv").read_bytes()


def test_flags_reach_the_run(demo, small_yaml, tmp_path, capsys):
    folder = train(
        demo, small_yaml, tmp_path, "--max-triplets", "16", "--loss-itm", "0.5", "--save-memory", "--transform",
        "squarepad", "--loss-rtc", "0", "--num-epochs", "1",
    )  # fmt: skip
    assert "no image-text matching loss" in capsys.readouterr().out
    settings = json.loads((folder / "training_hyperparameters.json").read_text())
    assert (settings["max_triplets"], settings["transform"], settings["loss_rtc"]) == (16, "squarepad", 0)


def test_an_evaluation_has_the_settings_of_the_run(tmp_path, capsys):
    checkpoint = tmp_path / "run" / "saved_models" / "best.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()

    def config(*more):
        arguments = blip_validate.build_parser().parse_args(
            ["--dataset", "CIRR", "--model-path", str(checkpoint), *more]
        )
        return evaluation_config(vars(arguments))

    assert (config().backbone, config().transform, config().target_ratio) == ("pretrain", "targetpad", 1.25)
    trained = {"backbone": "pretrain_vitL", "transform": "squarepad", "target_ratio": 1.5, "seed": 3}
    (tmp_path / "run" / "training_hyperparameters.json").write_text(json.dumps(trained))
    found = config("--target-ratio", "2")
    assert (found.backbone, found.transform, found.target_ratio) == ("pretrain_vitL", "squarepad", 2)
    assert "settings of the run: backbone pretrain_vitL, transform squarepad" in capsys.readouterr().out
    for name, value in (("backbone", 5), ("transform", None), ("target_ratio", "wide")):
        (tmp_path / "run" / "training_hyperparameters.json").write_text(json.dumps(trained | {name: value}))
        with pytest.raises(InputError, match=f"{name} is {value!r}: remove the file, and give the flags of the run"):
            config()


def test_missing_images_stop_before_the_model_is_built(demo_copy, small_yaml, tmp_path):
    next((demo_copy / "dev").iterdir()).unlink()
    with pytest.raises(InputError, match="1 of 18 images"):
        train(demo_copy, small_yaml, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_wrong_flags_are_answered():
    with pytest.raises(InputError, match="`dataset` CIRR"):
        blip_fine_tune_2.main(["--dataset", "imagenet"])
    with pytest.raises(InputError, match="no checkpoint at"):
        blip_validate.main(["--dataset", "CIRR", "--model-path", "nowhere.pt"])
    with pytest.raises(InputError, match="`rerank`"):
        cirr_test_submission.main(["--model-path", "nowhere.pt", "--rerank"])
    with pytest.raises(InputError, match=r"no checkpoint at nowhere\.pt"):
        cirr_test_submission.main(["--model-path", "nowhere.pt", "--rerank", "False"])


@pytest.mark.parametrize("script", ["blip_fine_tune_2", "blip_validate", "cirr_test_submission", "retrieve"])
def test_help_needs_no_heavy_import(script):
    code = f"import sys, {script}; {script}.build_parser().format_help(); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"


def test_help_has_upstreams_flags_and_every_default():
    parser = blip_fine_tune_2.build_parser()
    text = " ".join(parser.format_help().split())
    assert [flag for flag in UPSTREAM_FLAGS.split() if flag not in text] == []
    for action in parser._actions:
        default = getattr(TrainConfig, action.dest, None)
        if default not in (None, False) and not isinstance(default, property):
            assert f"(default: {default})" in text, action.dest


@pytest.mark.integration
def test_bad_input_is_one_line_and_status_2(warm, tmp_path):
    flags = ["--dataset", "CIRR", "--data-path", tmp_path / "nowhere"]
    answer = warm("blip_fine_tune_2.py", *flags, cwd=SOURCE).finished()
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: no folder")
    assert len(answer.stderr.splitlines()) == 1


@pytest.mark.integration
def test_real_annotations_from_training_to_submission(shared, small_yaml, tmp_path):
    """CIRR's own val and test1 annotations over small images of the right names; a made-up training split."""
    make_demo_dataset(tmp_path, DemoSettings(24, 64, val_images=6, val_triplets=2, test_images=6, test_triplets=2))
    pictures = sorted((tmp_path / "train").rglob("*.png"))
    for picture in pictures:  # thousands of their likes are read
        Image.open(picture).resize((56, 56)).save(picture)
    for split in ("val", "test1"):
        for kind in ("captions/cap", "image_splits/split"):
            name = f"cirr/{kind}.rc2.{split}.json"
            (tmp_path / name).write_bytes((shared / name).read_bytes())
        places = json.loads((tmp_path / f"cirr/image_splits/split.rc2.{split}.json").read_text())
        for number, place in enumerate(places.values()):
            (tmp_path / place).unlink(missing_ok=True)
            (tmp_path / place).hardlink_to(pictures[number % len(pictures)])
    folder = train(tmp_path, small_yaml, tmp_path / "models", "--save-best", "--num-epochs", "1", "--batch-size", "64")
    best = folder / "saved_models" / "tuned_clip_arithmetic.pt"
    metrics = blip_validate.main(["--dataset", "CIRR", *evaluation_flags(best, tmp_path, small_yaml)])
    assert 0 < metrics["recall_at50"] < 100
    flags = [*evaluation_flags(best, tmp_path, small_yaml), "--output-folder", str(tmp_path / "submission")]
    assert [len(read_submission(path)) for path in cirr_test_submission.main(flags)] == [4148 + 2, 4148 + 2]


@pytest.mark.parametrize("script", ["blip_fine_tune_2", "blip_validate", "cirr_test_submission", "retrieve"])
def test_an_installed_lavis_is_not_taken(tmp_path, script):
    """Where salesforce-lavis is installed, or on PYTHONPATH, the scripts take the package that lies beside them."""
    (tmp_path / "lavis").mkdir()
    (tmp_path / "lavis" / "__init__.py").write_text("raise ImportError('the wrong lavis')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(SOURCE / f"{script}.py"), "--help"]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
