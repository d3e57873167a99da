"""Attention that prefers the boxes in training: `region_bias`, which a training lets fall to 0."""

import csv
from dataclasses import replace

import pytest
import torch
from training_flags import training_flags, with_regions

import blip_fine_tune_2
from lavis.models import load_model
from lavis.models.blip2_models.foreground import patches_in_boxes
from lavis.models.blip2_models.frozen_features import FrozenFeatures
from lavis.models.blip2_models.region import PREFIX_TOKENS
from sprc.core.errors import InputError
from sprc.training.config import TrainConfig
from sprc.training.trainer import Trainer

BOXES = [[[0.0, 0.0, 0.5, 0.5]], None]
HIDDEN = 1e4  # a bias with which nothing is seen outside the boxes


@pytest.fixture
def model(still_yaml):
    """In training mode, without dropout: with it a pass is not like another."""
    torch.manual_seed(0)
    return load_model("blip2_cir_align_prompt", still_yaml).train()


@pytest.fixture
def samples(model) -> dict:
    """Two triplets of frozen features, and boxes of the first one's images."""
    generator = torch.Generator().manual_seed(1)
    image, target = (torch.randn(2, 17, model.config.vision.width, generator=generator) for _ in range(2))
    return {"image": FrozenFeatures(image), "target": FrozenFeatures(target), "text_input": ["make it red", "two"],
            "region_boxes": BOXES, "target_region_boxes": BOXES}  # fmt: skip


def of_boxes(model, tokens):
    """CLS and the patches in the box of the first image: (1, n, D)."""
    boxes = torch.tensor(BOXES[0])
    inside = patches_in_boxes(boxes, torch.zeros(1, dtype=torch.long), 1, model.own_grid(tokens))[0]
    return torch.cat([tokens[:1, :PREFIX_TOKENS], tokens[:1, PREFIX_TOKENS:][:, inside]], dim=1)


def test_what_is_added_to_the_logits(model):
    model.region_bias = 3.0
    bias = model.image_bias(torch.zeros(2, 17, model.config.vision.width), BOXES)
    assert bias.shape == (2, 1, 1, 17)
    grid = bias[0, 0, 0, PREFIX_TOKENS:].view(4, 4)
    assert (grid[:2, :2] == 0).all()
    assert (grid[2:] == -3).all()
    assert (grid[:, 2:] == -3).all()
    assert bias[0, 0, 0, 0] == 0, "CLS"
    assert (bias[1] == 0).all(), "an image without boxes"


def test_a_large_bias_is_what_seeing_the_boxes_alone_gives(model, samples):
    model.region_bias = HIDDEN
    found = model.embed(samples)
    reference, target = (model.encode_images(samples[name]) for name in ("image", "target"))
    text = model.tokenize(samples["text_input"])
    first = tuple(part[:1] for part in text)
    tokens = model.target_tokens(of_boxes(model, target))
    query = model.query_feature(model.fuse(of_boxes(model, reference), *first), *first)
    torch.testing.assert_close(found["target_tokens"][:1], tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["query"][:1], query, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["target_tokens"][1:], model.target_tokens(target)[1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("bias", "training"), [(0.0, True), (HIDDEN, False)])
def test_without_a_bias_and_in_retrieval_it_is_sprc(model, samples, bias, training):
    plain = model.train(training).embed(samples)
    model.region_bias = bias
    found = model.embed(samples)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_it_goes_with_the_region_loss_and_both_views_of_foreground(model, samples):
    """The view through the boxes has CLS and the rest hidden already: a bias changes the whole view alone."""
    model.region_objective, model.use_region_loss = "foreground", True
    torch.manual_seed(0)
    plain = model.embed(samples)
    model.region_bias = HIDDEN
    torch.manual_seed(0)
    found = model.embed(samples)
    alone = model.target_tokens(of_boxes(model, model.encode_images(samples["target"])))
    torch.testing.assert_close(found["target_tokens"][:1], alone, atol=1e-5, rtol=0)
    assert not torch.allclose(found["target_tokens"][:1], plain["target_tokens"][:1], atol=1e-3)
    sum(model.losses(found).values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("objective", [None, "foreground"])
def test_bf16(model, samples, objective):
    if objective is not None:
        model.region_objective, model.use_region_loss = objective, True
    model.region_bias = 4.0
    expected = model.losses(model.embed(samples))
    with torch.autocast("cpu", torch.bfloat16):
        found = model.losses(model.embed(samples))
    for name in ("loss_itc", "loss_rtc"):
        torch.testing.assert_close(found[name].float(), expected[name], atol=0.05, rtol=0)


def test_samples_without_boxes_are_refused(model, samples):
    model.region_bias = 1.0
    del samples["region_boxes"]
    with pytest.raises(InputError, match="the samples have no region_boxes: give `box_file`"):
        model(samples)


def test_a_training_lets_it_fall_and_needs_no_region_loss(demo, still_yaml, tmp_path, monkeypatch):
    seen, step = [], Trainer.train_step
    monkeypatch.setattr(
        Trainer, "train_step", lambda self, *given: (step(self, *given), seen.append(self.model.region_bias))
    )
    boxes = {"box_file": with_regions(demo)["box_file"]}

    def losses(name: str, **settings) -> list[dict]:
        blip_fine_tune_2.main(training_flags(demo, still_yaml, tmp_path / name, num_epochs=2, seed=1, **settings))
        (path,) = (tmp_path / name).glob("*/train_metrics.csv")
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    biased = losses("biased", region_bias=4, region_bias_until=0.8, **boxes)
    assert seen == pytest.approx([4, 3.5, 3, 2.5, 2, 1.5, 1, 0.5, 0, 0])
    assert "loss_region" not in biased[0]
    assert float(biased[0]["regions_per_image"]) >= 1
    again = losses("in_parts", region_bias=4, region_bias_until=0.8, micro_batch=3, **boxes)
    plain = losses("plain")
    for name in ("loss_itc", "loss_rtc", "loss_align"):
        assert float(again[-1][name]) == pytest.approx(float(biased[-1][name]), abs=1e-4)
    assert plain[0]["loss_itc"] != biased[0]["loss_itc"]


def test_a_run_that_continues_has_the_bias_of_its_step(demo, still_yaml, tmp_path, monkeypatch):
    settings = {"region_bias": 4, "box_file": with_regions(demo)["box_file"], "save_every": "1", "num_epochs": 2}

    def train(name: str, **more) -> dict[str, torch.Tensor]:
        blip_fine_tune_2.main(training_flags(demo, still_yaml, tmp_path / name, **settings, **more))
        (path,) = (tmp_path / name).glob("*/training_state.pt")
        return torch.load(path, weights_only=True)["model"]

    whole, step, seen = train("whole"), Trainer.train_step, []

    def failing(self, *given):
        step(self, *given)
        seen.append(self.model.region_bias)
        if len(seen) == 4:
            raise RuntimeError("the power is gone")

    monkeypatch.setattr(Trainer, "train_step", failing)
    with pytest.raises(RuntimeError, match="the power is gone"):
        train("cut")
    cut = train("cut", resume=next((tmp_path / "cut").iterdir()))
    assert seen[3] == seen[4] > seen[5], "the step that was not saved is done again"
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region_bias": 4.0}, "`region_bias` needs `box_file`"),
        ({"region_bias": -1.0}, "`region_bias` must be at least 0"),
        ({"region_bias": 4.0, "region_bias_until": 1.5}, "`region_bias_until` is a part of the training, up to 1"),
        ({"region_bias_until": 0.7}, "`region_bias_until` has no effect without `region_bias`"),
        ({}, "`box_file` has no effect without `use_region_loss` or `region_bias`"),
    ],
)
def test_settings_that_cannot_be(settings, message, tmp_path):
    box_file = {} if message.startswith("`region_bias` needs") else {"box_file": tmp_path / "b.json"}
    with pytest.raises(InputError, match=message):
        TrainConfig(dataset="CIRR", **settings, **box_file)


def test_it_falls_by_the_plan_and_not_by_what_follows_it(tmp_path):
    config = TrainConfig(dataset="CIRR", box_file=tmp_path, region_bias=4.0, num_epochs=10)
    longer = replace(config, num_epochs=20, planned_epochs=10)
    for epochs in (0, 2.5, 5, 15):
        assert longer.region_bias_at(longer.progress_at(epochs)) == config.region_bias_at(config.progress_at(epochs))
