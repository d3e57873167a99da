"""A training step on CUDA without CUDA: torch's fake tensors have devices, but no values that a host could wait for."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lavis.models import load_model
from lavis.models.blip2_models.frozen_features import FrozenFeatures
from lavis.models.blip2_models.region import OBJECTIVES

BOXES = [[[0.1, 0.1, 0.5, 0.5]], None, [[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.9, 0.9]]]
TEXTS = ["make the red circle blue", "remove it", "two of them"]

pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available")


@pytest.fixture
def model(small_yaml, monkeypatch):
    """A model on a GPU that is not there, as everything is that the test makes."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)  # the one step that asks for a real one
    model = load_model("blip2_cir_align_prompt", small_yaml, use_region_loss=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield model.to("cuda")


class NoBlockingCopy(TorchDispatchMode):
    """Raises where a copy from the host to the GPU makes the host wait: one that is not marked `non_blocking`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        copies = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if copies and _is_blocking(function, args, kwargs, result):
            raise AssertionError(f"{function} from the host to the GPU, which waits")
        return result


def _is_blocking(function, args, kwargs, result) -> bool:
    source, asynchronous = args[0], kwargs.get("non_blocking", False)
    if function is torch.ops.aten.copy_.default:
        source, asynchronous = args[1], (args[2] if len(args) > 2 else asynchronous)
    return (source.device.type, result.device.type) == ("cpu", "cuda") and not asynchronous


def losses(model, objective: str, cached: bool) -> dict[str, Tensor]:
    model.region_objective = objective
    shape, dtype = ((17, model.config.vision.width), torch.float16) if cached else ((3, 56, 56), torch.float32)
    image, target = torch.empty(2, 3, *shape, device="cuda", dtype=dtype)
    if cached:
        image, target = FrozenFeatures(image), FrozenFeatures(target)
    samples = {"image": image, "target": target, "text_input": TEXTS, "target_names": ["a", "b", "c"]}
    return model(samples | {"region_boxes": BOXES, "target_region_boxes": BOXES})


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "pairs"])
def test_a_step_mixes_no_devices_and_the_host_never_waits(model, objective, cached):
    with NoBlockingCopy():
        found = losses(model, objective, cached)
    assert {name: (loss.device.type, loss.dtype) for name, loss in found.items()} == dict.fromkeys(
        ("loss_itc", "loss_rtc", "loss_align", "loss_region"), ("cuda", torch.float32)
    )


def test_a_blocking_copy_is_seen(model):
    with NoBlockingCopy(), pytest.raises(AssertionError, match="which waits"):
        torch.ones(2).to("cuda")


def test_pairs_are_matched_on_the_host(model):
    """The Hungarian method runs there: the one objective that waits for the GPU."""
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        losses(model, "pairs", cached=False)
