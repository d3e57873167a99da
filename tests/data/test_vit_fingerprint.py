"""The digest of a frozen ViT: every number counts, and it is computed once."""

import pytest
import torch

from sprc.data import vit_fingerprint as module
from sprc.data.vit_fingerprint import frozen_fingerprint


def vit(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    found = torch.nn.Module()
    found.visual_encoder = torch.nn.Sequential(torch.nn.Linear(300, 400), torch.nn.BatchNorm1d(400))
    found.head = torch.nn.Linear(2, 2)
    return found.requires_grad_(False)


@pytest.mark.parametrize("place", [0, 1, 1023, 1024, 30_000, 60_001, 119_998, 119_999])
def test_every_number_counts(place):
    """The old digest read 4 times 1024 numbers of a tensor."""
    model = vit()
    before = frozen_fingerprint(model)
    model.visual_encoder[0].weight.view(-1)[place] += 1e-3
    assert frozen_fingerprint(model) != before


def test_types_buffers_and_replaced_tensors_count():
    model = vit()
    seen = {frozen_fingerprint(model)}
    model.visual_encoder[1].running_mean.add_(1)
    seen.add(frozen_fingerprint(model))
    model.visual_encoder[0].half()
    seen.add(frozen_fingerprint(model))
    model.visual_encoder[0].bias = torch.nn.Parameter(torch.ones(400).half())
    seen.add(frozen_fingerprint(model))
    assert len(seen) == 4


def test_it_is_of_the_vit_alone_and_the_same_for_equal_ones():
    model = vit()
    before = frozen_fingerprint(model)
    model.head.weight.add_(1)
    assert frozen_fingerprint(model) == before == frozen_fingerprint(vit())
    assert frozen_fingerprint(vit(seed=1)) != before


def test_it_is_computed_once(monkeypatch):
    model, calls, original = vit(), [], module.digest_of
    monkeypatch.setattr(module, "digest_of", lambda of: calls.append(1) or original(of))
    assert len({frozen_fingerprint(model) for _ in range(3)}) == 1
    assert len(calls) == 1
