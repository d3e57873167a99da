"""A training with the region loss: its weight, its flags, and what it writes."""

import pytest
import torch

import blip_fine_tune_2
from lavis.models.blip2_models.region import OBJECTIVES
from sprc.core.errors import InputError
from sprc.training.config import RegionWeight, TrainConfig


def test_weights_and_their_schedule(tmp_path):
    assert RegionWeight(0.5, 0.5).at(0) == 0.5
    assert RegionWeight(0.5, 0.5).at(0.25) == 0.25
    assert RegionWeight(0.5, 0.5).at(0.75) == 0
    assert RegionWeight(0.1).at(1) == 0.1
    both = TrainConfig(dataset="CIRR", use_region_loss=True, box_file=tmp_path, region_objective="both")
    assert both.loss_weights(0.9)["loss_region"] == 0.5
    config = TrainConfig(dataset="CIRR", use_region_loss=True, box_file=tmp_path)
    assert [config.loss_weights(p)["loss_region"] for p in (0, 0.25, 0.5, 1)] == [0.5, 0.25, 0, 0]
    fixed = TrainConfig(dataset="CIRR", use_region_loss=True, box_file=tmp_path, loss_region=0.2)
    assert [fixed.loss_weights(p)["loss_region"] for p in (0, 1)] == [0.2, 0.2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--use-region-loss"], "needs `box_file`"),
        (["--box-file", "b.json"], "without `use_region_loss`"),
        (["--loss-region", "1"], "with `use_region_loss`"),
        (["--use-region-loss", "--box-file", "b.json", "--max-regions", "0"], "`max_regions`"),
        (["--use-region-loss", "--box-file", "b.json", "--loss-region", "-1"], "at least 0"),
    ],
)
def test_wrong_flags_are_answered_at_start(flags, message):
    with pytest.raises(InputError, match=message):
        blip_fine_tune_2.main(["--dataset", "CIRR", *flags])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_with_regions(demo, small_yaml, tmp_path, objective, capsys):
    box_file = demo / "boxes" / "cirr_boxes_train.json"
    flags = ["--dataset", "CIRR", "--data-path", str(demo), "--backbone", small_yaml, "--device", "cpu"]
    flags += ["--num-workers", "0", "--batch-size", "8", "--num-epochs", "2", "--learning-rate", "1e-3", "--save-best"]
    flags += ["--use-region-loss", "--box-file", str(box_file), "--region-objective", objective]
    blip_fine_tune_2.main([*flags, "--output-folder", str(tmp_path)])
    assert "boxes: " in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    header, *rows = (folder / "train_metrics.csv").read_text().splitlines()
    assert header == "epoch,loss_itc,loss_rtc,loss_align,loss_region,regions_per_image,dropped_per_image"
    numbers = [dict(zip(header.split(","), map(float, row.split(",")), strict=True)) for row in rows]
    assert all(1 <= row["regions_per_image"] <= 5 and row["loss_region"] > 0 for row in numbers)
    saved = torch.load(folder / "saved_models" / "tuned_clip_arithmetic.pt", weights_only=True)
    assert "region_proj.weight" in saved["Blip2QformerCirAlignPrompt"]
