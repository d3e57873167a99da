"""What was tried beside SPRC's own model in the comparison of region losses: each does what it says."""

import pytest
import torch
from region_models import FADED, FASTER, OUTSIDE, FastLinear
from torch import nn

from lavis.models import load_model
from lavis.models.blip2_models.frozen_features import FrozenFeatures

BOXES = [[[0.0, 0.0, 0.5, 0.5]], None]


def model_of(name: str, yaml: str, **options):
    torch.manual_seed(0)
    return load_model(name, yaml, **options)


def samples_for(model) -> dict:
    """Two triplets of frozen features."""
    generator = torch.Generator().manual_seed(1)
    image, target = (torch.randn(2, 17, model.config.vision.width, generator=generator) for _ in range(2))
    texts = ["make it red", "two of them"]
    return {"image": FrozenFeatures(image), "target": FrozenFeatures(target), "text_input": texts,
            "region_boxes": BOXES, "target_region_boxes": BOXES}  # fmt: skip


def embedded(model) -> dict[str, torch.Tensor]:
    """With the same dropout every time."""
    torch.manual_seed(2)
    return model.embed(samples_for(model))


def moved_by_a_step(layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """By how much the first step of AdamW moves a layer's output of the unit vectors."""
    before = layer(torch.eye(3)).detach()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, weight_decay=0)
    layer(rows).sum().backward()
    optimizer.step()
    return layer(torch.eye(3)).detach() - before


def test_a_fast_layer_moves_by_ten_times_the_rate():
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    slow, fast = nn.Linear(3, 4), FastLinear(3, 4)
    torch.testing.assert_close(moved_by_a_step(fast, rows), FASTER * moved_by_a_step(slow, rows))


def test_fast_heads_start_as_the_others_do(small_yaml):
    plain, fast = (model_of(name, small_yaml) for name in ("blip2_cir_align_prompt", "blip2_cir_fast_heads"))
    rows = torch.randn(3, plain.region_token_proj.in_features)
    torch.testing.assert_close(fast.region_token_proj(rows), plain.region_token_proj(rows))
    assert not fast.region_token_proj.weight.requires_grad
    fast.region_objective, fast.use_region_loss = "compose", True
    assert fast.region_token_proj.weight.requires_grad
    bound = plain.region_proj.in_features**-0.5  # of the numbers that a linear layer starts with
    assert bound / 2 < FASTER * fast.initial_region_values()["region_proj.weight"].abs().max() <= bound


def test_the_started_head_takes_the_text_projection_once(small_yaml, tmp_path):
    torch.save({"model": model_of("blip2_cir_align_prompt", small_yaml).state_dict()}, tmp_path / "weights.pth")
    model = model_of("blip2_cir_started_head", small_yaml, weights=str(tmp_path / "weights.pth"))
    assert torch.equal(model.region_token_proj.weight, model.text_proj.weight)
    learned = model.state_dict() | {"region_token_proj.weight": torch.ones_like(model.text_proj.weight)}
    model.load_state_dict(learned)
    assert (model.region_token_proj.weight == 1).all(), "a run that continues has its own"


def test_biased_attention_prefers_boxes_and_fades(small_yaml):
    model = model_of("blip2_cir_biased_attention", small_yaml).train()
    bias = model.bias_of(torch.zeros(2, 17, model.config.vision.width), BOXES)
    grid = bias[0, 0, 0, 1:].view(4, 4)
    assert (grid[:2, :2] == 0).all() and (grid[2:] == -OUTSIDE).all() and (grid[:, 2:] == -OUTSIDE).all()
    assert (bias[1] == 0).all() and bias[0, 0, 0, 0] == 0, "an image without boxes, and CLS"
    model.steps = FADED // 2
    assert model.strength == OUTSIDE / 2


@pytest.mark.parametrize(("steps", "training", "same"), [(0, True, False), (FADED, True, True), (0, False, True)])
def test_attention_without_bias_is_sprcs(small_yaml, steps, training, same):
    plain, biased = (model_of(name, small_yaml, use_region_loss=True, region_objective="compose").train(training)
                     for name in ("blip2_cir_align_prompt", "blip2_cir_biased_attention"))  # fmt: skip
    biased.steps = steps
    found, expected = map(embedded, (biased, plain))
    for name in ("query", "target_tokens"):
        assert torch.equal(found[name][0], expected[name][0]) == same, "the image with a box"
        torch.testing.assert_close(found[name][1], expected[name][1])
    assert biased.steps == steps + training
