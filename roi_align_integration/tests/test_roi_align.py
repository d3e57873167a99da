"""RoIAlign in the model, from the plain forward pass to training with regions.

Run it alone, without weights, on the CPU or CUDA: `python roi_align_integration/tests/test_roi_align.py [--backbone
pretrain] [--device cuda]`. pytest collects the same functions; `model` comes from `conftest.py`.
"""

import argparse
import sys
import time
import traceback

from sprc.core import interrupts

if __name__ == "__main__":
    interrupts.end_at_once()  # while the packages below load

import torch

from lavis.models import Blip2QformerCirAlignPrompt
from lavis.models.blip2_models.region import OBJECTIVES
from sprc.core.command_line import run_main
from sprc.demo.model import random_model_on

BATCH = 3
CAPTIONS = ["make the red circle blue", "remove the square", "add a large green triangle at the top"]
LOSSES = {"loss_itc", "loss_rtc", "loss_align"}


def build_model(backbone: str = "tiny", device: str | None = None) -> Blip2QformerCirAlignPrompt:
    """A model with random weights and the small vocabulary of this repository: nothing has to be downloaded."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return random_model_on(device, backbone).eval()


def make_samples(model, ref_boxes=None, tgt_boxes=None) -> dict:
    """Random images and the boxes given, or none of them."""
    side = model.config.vision.image_size
    images = torch.randn(2, BATCH, 3, side, side, generator=torch.Generator().manual_seed(1)).to(model.device)
    samples = {"image": images[0], "target": images[1], "text_input": CAPTIONS}
    return samples | {"region_boxes": ref_boxes, "target_region_boxes": tgt_boxes}


def boxes_of(*counts: int) -> list[torch.Tensor]:
    """Boxes (n, 4) in the input frame, n as given image by image."""
    generator = torch.Generator().manual_seed(sum(counts))
    low = 0.6 * torch.rand(sum(counts), 2, generator=generator)
    sides = 0.1 + 0.3 * torch.rand(sum(counts), 2, generator=generator)
    return list(torch.cat([low, low + sides], dim=1).split(counts))


def with_regions(model, objective: str = "tokens"):
    model.use_region_loss, model.region_objective = True, objective
    return model


def test_forward_without_regions(model):
    model.use_region_loss = False
    losses = model(make_samples(model))
    assert set(losses) == LOSSES
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_region_loss(model):
    samples = make_samples(model, boxes_of(2, 1, 3), boxes_of(1, 2, 2))
    for objective in OBJECTIVES:
        losses = with_regions(model, objective)(samples)
        assert set(losses) == LOSSES | {"loss_region"}
        assert torch.isfinite(losses["loss_region"])
        assert losses["loss_region"] >= 0


def test_region_features(model):
    embeds = model.encode_images(make_samples(model)["image"])
    side, width = model.config.vision.image_size, model.config.vision.width
    features = model.extract_region_features(embeds, boxes_of(2, 0, 3), image_size=(side, side))
    assert [tuple(f.shape) for f in features] == [(2, width), (0, width), (3, width)]
    whole = model.extract_region_features(embeds, [[[0, 0, 1, 1]]] * BATCH, (side, side))
    for one, of_image in zip(whole, embeds, strict=True):  # the whole image pools every patch, and not CLS
        torch.testing.assert_close(one[0], of_image[1:].mean(dim=0), atol=2e-2, rtol=2e-2)


def test_empty_boxes(model):
    for empty in (None, [None] * BATCH, [[]] * BATCH, [torch.zeros(0, 4)] * BATCH):
        model.zero_grad(set_to_none=True)
        losses = with_regions(model)(make_samples(model, empty, empty))
        assert losses["loss_region"] == 0
        sum(losses.values()).backward()


def test_differing_numbers_of_boxes(model):
    for counts in ((1, 0, 5), (0, 0, 1), (4, 4, 4)):
        for objective in OBJECTIVES:
            losses = with_regions(model, objective)(make_samples(model, boxes_of(3, 1, 2), boxes_of(*counts)))
            assert torch.isfinite(losses["loss_region"])
            assert losses["loss_region"] >= 0


def test_features_are_the_same_batched_and_one_by_one(model):
    embeds, boxes = model.encode_images(make_samples(model)["image"]), boxes_of(2, 3, 1)
    side = (model.config.vision.image_size,) * 2
    batched = model.extract_region_features(embeds, boxes, side)
    for image in range(BATCH):
        for number in range(len(boxes[image])):
            box = [boxes[image][number : number + 1]]
            one = model.extract_region_features(embeds[image : image + 1], box, side)[0][0]
            torch.testing.assert_close(one, batched[image][number], atol=1e-5, rtol=1e-5)


def test_the_loss_reads_the_boxes(model):
    samples = make_samples(model, boxes_of(2, 1, 3), boxes_of(2, 2, 2))
    first = with_regions(model)(samples)["loss_region"]
    moved = make_samples(model, boxes_of(2, 1, 3), boxes_of(2, 2, 3))
    assert with_regions(model)(moved)["loss_region"] != first


def test_the_gradient_reaches_the_cross_attention(model):
    samples = make_samples(model, boxes_of(2, 1, 3), boxes_of(2, 2, 2))
    for objective in OBJECTIVES:
        model.zero_grad(set_to_none=True)
        with_regions(model, objective)(samples)["loss_region"].backward()
        named = ((n, p.grad) for n, p in model.named_parameters() if "crossattention" in n and p.grad is not None)
        assert (sum(float(grad.abs().sum()) for _, grad in named) > 0) == (objective != "pairs"), objective


def test_half_precision(model):
    device = model.device.type
    samples = make_samples(model, boxes_of(2, 1, 3), boxes_of(2, 2, 2))
    with torch.autocast(device, dtype=torch.float16 if device == "cuda" else torch.bfloat16):
        losses = with_regions(model)(samples)
    assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for loss in losses.values())


def test_a_step_of_training(model):
    """Switching regions off later leaves SPRC's losses; here a step with them changes what retrieves."""
    samples = make_samples(model, boxes_of(2, 1, 3), boxes_of(2, 2, 2))
    with_regions(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    model.zero_grad(set_to_none=True)
    sum(model(samples).values()).backward()
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(before[name])
    assert {"region_proj.weight", "region_logit_scale", "vision_proj.weight"} <= changed
    assert not any(name.startswith("visual_encoder") for name in changed)


def main(argv: list[str] | None = None) -> int:
    """Run every test of this file on one model; print each result and the pass rate; returns 0 if all passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="tiny", help="tiny, pretrain, pretrain_vitL, or a model's YAML file")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: CUDA if there is any)")
    args = parser.parse_args(argv)
    model = build_model(args.backbone, args.device)
    tests = [(name, value) for name, value in globals().items() if name.startswith("test_")]
    passed = 0
    for name, test in tests:
        start = time.perf_counter()
        try:
            test(model)
            passed += 1
            print(f"passed  {name} ({time.perf_counter() - start:.1f} s)", flush=True)
        except Exception:  # whatever it is, the other tests are run too
            print(f"FAILED  {name}\n{traceback.format_exc()}", flush=True)
    print(f"pass rate: {passed}/{len(tests)} ({100 * passed / len(tests):.0f} %), {args.backbone} on {model.device}")
    return 0 if passed == len(tests) else 1


if __name__ == "__main__":
    run_main(lambda: sys.exit(main()))
