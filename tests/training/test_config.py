"""The configuration: presets, checks from Python, flags of every setting, and settings read back from a run."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from training_flags import training_flags

import blip_fine_tune_2
import blip_validate
from sprc.core.errors import InputError
from sprc.core.logs import as_flags
from sprc.core.options import options_of
from sprc.retrieval.options import EvaluationConfig
from sprc.training.config import TrainConfig


def test_a_preset_fills_what_is_not_given_also_after_replace():
    config = TrainConfig(dataset="CIRR", num_epochs=7)
    assert (config.plan.num_epochs, config.plan.learning_rate, config.plan.loss_rtc) == (7, 1e-5, 0.4)
    other = dataclasses.replace(config, dataset="FashionIQ")
    assert (other.plan.num_epochs, other.plan.learning_rate, other.plan.loss_rtc) == (7, 2e-5, 1.0)
    assert dataclasses.replace(other, num_epochs=None).plan.num_epochs == 30
    assert other.settings()["learning_rate"] == 2e-5


def test_values_that_stand_for_those_of_a_field_are_taken(tmp_path):
    config = TrainConfig("CIRR", seed=np.int64(3), learning_rate=np.float32(0.5), weights=tmp_path / "w.pt",
                         feature_cache=tmp_path / "f", data_path=str(tmp_path))  # fmt: skip
    assert (config.seed, config.learning_rate, type(config.seed), type(config.learning_rate)) == (3, 0.5, int, float)
    assert (config.weights, config.feature_cache) == (str(tmp_path / "w.pt"), str(tmp_path / "f"))
    assert config.data_path == tmp_path
    # A float of numpy is a float, but a state that holds one would not load again.
    assert type(TrainConfig("CIRR", learning_rate=np.float64(0.5)).learning_rate) is float


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transform": "stretch"}, "`transform` 'stretch': use one of targetpad, squarepad"),
        ({"precision": "fp8"}, "`precision` 'fp8'"),
        ({"cache_precision": "int8", "feature_cache": "f"}, "`cache_precision` 'int8'"),
        ({"cache_device": "tpu", "feature_cache": "f"}, "`cache_device` 'tpu'"),
        ({"region_objective": "best"}, "`region_objective` 'best'"),
        ({"batch_size": "8"}, "`batch_size` is '8': give a value of type int"),
        ({"batch_size": True}, "`batch_size` is True"),
        ({"batch_size": 2.5}, "`batch_size` is 2.5"),
        ({"learning_rate": "1e-3"}, "`learning_rate` is '1e-3': give a value of type float"),
        ({"save_best": 1}, "`save_best` is 1: give a value of type bool"),
        ({"num_workers": -1}, "`num_workers` must be at least 0"),
        ({"micro_batch": 0}, "`micro_batch` must be at least 1"),
        ({"max_triplets": 0}, "`max_triplets` must be above 0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be above 0, not nan"),
        ({"seed": -1}, "`seed` must be at least 0"),
        ({"data_path": 5}, "`data_path` is 5: give a value of type Path"),
    ],
)
def test_python_refuses_what_a_flag_refuses(settings, message):
    with pytest.raises(InputError) as caught:
        TrainConfig(dataset="CIRR", **settings)
    assert str(caught.value).startswith(message)
    name = next(iter(settings))
    assert f"--{name.replace('_', '-')}" in as_flags(str(caught.value))


def test_every_setting_has_a_flag_and_a_help():
    for parser, config in (
        (blip_fine_tune_2.build_parser(), TrainConfig),
        (blip_validate.build_parser(), EvaluationConfig),
    ):
        text = parser.format_help()
        for name, field in options_of(config).items():
            assert f"--{name.replace('_', '-')}" in text
            assert field.metadata["option"].help
    assert {field.name for field in dataclasses.fields(TrainConfig)} - {*options_of(TrainConfig)} == {"planned_epochs"}


def test_the_settings_of_a_run_are_read_back(demo, small_yaml, tmp_path):
    flags = training_flags(demo, small_yaml, tmp_path / "one", learning_rate=1e-3, seed=3, save_best=True)
    blip_fine_tune_2.main(flags)
    (folder,) = (tmp_path / "one").iterdir()
    file = ["--config", str(folder / "training_hyperparameters.json")]
    before, _ = blip_fine_tune_2.parse_config(flags)
    kept = {"backbone": str(folder / "backbone.yaml")}
    assert blip_fine_tune_2.parse_config(file)[0].settings() == before.settings() | kept
    blip_fine_tune_2.main([*file, "--output-folder", str(tmp_path / "two")])
    (again,) = (tmp_path / "two").iterdir()
    for name in ("train_metrics.csv", "validation_metrics.csv"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    changed, _ = blip_fine_tune_2.parse_config([*file, "--batch-size", "4"])
    assert changed == dataclasses.replace(blip_fine_tune_2.parse_config(file)[0], batch_size=4)


def test_a_run_with_a_backbone_of_its_own_keeps_it_for_its_settings(demo, small_yaml, tmp_path):
    own = tmp_path / "my.yaml"
    own.write_text(Path(small_yaml).read_text())
    blip_fine_tune_2.main(training_flags(demo, str(own), tmp_path / "one"))
    (folder,) = (tmp_path / "one").iterdir()
    own.unlink()
    config, _ = blip_fine_tune_2.parse_config(["--config", str(folder / "training_hyperparameters.json")])
    assert config.backbone == str(folder / "backbone.yaml")


def test_a_file_of_settings_that_is_none_is_answered(tmp_path):
    path = tmp_path / "a.json"
    for content, message in (
        ({"dataset": "CIRR", "colour": "red"}, "has the setting 'colour', which this version does not have"),
        ([1], "should hold a JSON dict"),
        ({"dataset": "CIRR", "batch_size": "many"}, "`batch_size` is 'many'"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            blip_fine_tune_2.parse_config(["--config", str(path)])
    with pytest.raises(InputError, match="no file"):
        blip_fine_tune_2.parse_config(["--config", str(tmp_path / "none.json")])


def test_a_dataset_is_required(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    for flags in ([], ["--config", str(tmp_path / "a.json")]):
        with pytest.raises(SystemExit) as ended:
            blip_fine_tune_2.parse_config(flags)
        assert ended.value.code == 2
        assert "the following arguments are required: --dataset" in capsys.readouterr().err
