"""What was tried beside SPRC's own model in the comparison of region losses: each does what it says."""

import torch
from region_models import FASTER, FastLinear
from torch import nn

from lavis.models import load_model


def model_of(name: str, yaml: str, **options):
    torch.manual_seed(0)
    return load_model(name, yaml, **options)


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
