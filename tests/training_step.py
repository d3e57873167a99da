"""One training step of a small model: five triplets with regions, and the comparison of two steps' numbers."""

import torch

from lavis.models import load_model

TEXTS = ["make the red circle blue", "remove it", "add a green square", "two of them", "move the circle to the left"]
NAMES = ["a", "b", "a", "d", "e"]
WEIGHTS = {"loss_itc": 1.0, "loss_rtc": 0.4, "loss_align": 0.4}
BOX = [[0.1, 0.1, 0.6, 0.6]]
BOXES = [[*BOX, [0.4, 0.3, 0.9, 0.8]], None, BOX, [[0, 0, 1, 1], [0.5, 0, 1, 0.5], *BOX], [[0.2, 0.5, 0.9, 1]]]


def make_model(yaml: str, objective: str | None = None, dropout: bool = False):
    torch.manual_seed(0)
    model = load_model("blip2_cir_align_prompt", yaml, use_region_loss=objective is not None)
    model.region_objective = objective or "tokens"
    return model.train(dropout)


def make_samples() -> dict:
    image, target = torch.randn(2, 5, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    boxes = {"region_boxes": BOXES[::-1], "target_region_boxes": BOXES}
    return {"image": image, "target": target, "text_input": TEXTS, "target_names": NAMES, "statistics": {}} | boxes


def weights_of(objective: str | None) -> dict[str, float]:
    return WEIGHTS if objective is None else WEIGHTS | {"loss_region": 0.5}


def gradients_of(model) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(found, expected, tolerance: float = 2e-6) -> None:
    """(losses, gradients) of both, name by name."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            torch.testing.assert_close(
                value, theirs[name], atol=tolerance, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
