"""Region features against one box at a time and a closed form; every objective against a slow loop and its promises."""

import math
from itertools import permutations, product

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from lavis.models import load_model
from lavis.models.blip2_models.foreground import MOST_REVEALED, revealed_patches
from lavis.models.blip2_models.region import OBJECTIVES, TOKENS, flatten_boxes, match_regions, pool_regions
from lavis.models.checkpoint import FORK_ADDS, load_checkpoint, save_model
from sprc.core.errors import InputError
from sprc.training.config import REGION_WEIGHTS

TEXTS = ["make the red circle blue", "remove it", "add a green square", "two of them"]
COUNTS = (2, 0, 3, 1)


def random_boxes(count: int, generator: torch.Generator) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, generator=generator)
    low, high = corners.amin(dim=1), corners.amax(dim=1)
    return torch.cat([low * 0.7, low * 0.7 + 0.1 + 0.2 * (high - low)], dim=1)


@pytest.fixture
def model(small_yaml):
    torch.manual_seed(0)
    model = load_model("blip2_cir_align_prompt", small_yaml, is_eval=True, use_region_loss=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(1)
    image, target = torch.randn(2, 4, 3, 56, 56, generator=generator)
    return {
        "image": image,
        "target": target,
        "text_input": TEXTS,
        "region_boxes": [random_boxes(n, generator) for n in (1, 2, 3, 2)],
        "target_region_boxes": [random_boxes(n, generator) for n in COUNTS],
        "target_names": ["a", "b", "c", "d"],
    }


def embeds_of(model, samples):
    return model.encode_images(samples["image"]), model.encode_images(samples["target"])


def region_loss(model, samples, **changes):
    return model(samples | changes)["loss_region"]


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_equal_one_box_at_a_time(model, samples):
    _, embeds = embeds_of(model, samples)
    features = model.extract_region_features(embeds, samples["target_region_boxes"], (56, 56))
    assert [tuple(f.shape) for f in features] == [(n, 32) for n in COUNTS]
    for image, boxes in enumerate(samples["target_region_boxes"]):
        cells = embeds[image, 1:].T.reshape(1, 32, 4, 4)
        for number, box in enumerate(boxes):
            one = roi_align(cells, [box[None] * 4], 1, 1.0, -1, True).flatten()
            torch.testing.assert_close(features[image][number], one, atol=1e-6, rtol=0)


def test_a_ramp_is_pooled_to_its_value_at_the_centre():
    """A linear function of the place has the mean that it has at the box's centre, half a cell off the border."""
    height, width = 6, 8
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ramp = torch.stack([2.0 * xs + 3.0 * ys, -xs + 0.5 * ys]).flatten(1).T  # (H W, 2), cell centres at whole numbers
    tokens = torch.cat([torch.full((1, 2), 99.0), ramp])[None]  # CLS first
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.25, 0.25, 0.3, 0.3]])
    found = pool_regions(tokens, boxes, torch.zeros(2, dtype=torch.long), (height, width))
    x = (boxes[:, 0] + boxes[:, 2]) / 2 * width - 0.5
    y = (boxes[:, 1] + boxes[:, 3]) / 2 * height - 0.5
    torch.testing.assert_close(found, torch.stack([2 * x + 3 * y, -x + 0.5 * y], dim=1), atol=1e-5, rtol=0)


def test_the_input_frame_is_height_and_width(model):
    embeds = torch.randn(1, 1 + 2 * 4, 32)
    found = model.extract_region_features(embeds, [[[0.0, 0.0, 1.0, 0.5]]], image_size=(28, 56))
    assert found[0].shape == (1, 32)
    top = embeds[0, 1:5].mean(dim=0)
    torch.testing.assert_close(found[0][0], top, atol=0.5, rtol=0)  # the upper row of a grid of 2 x 4
    with pytest.raises(InputError, match=r"1 \+ 4 x 4 tokens, but the image embeddings have 9"):
        model.extract_region_features(embeds, [None], image_size=(56, 56))


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[[0, 0, 1, 1]]], "boxes for 1 images were given with a batch of 4"),
        ([None, [[0, 0, 30, 20]], None, None], "image 1 of the batch, box 0"),
        ([None, None, [[0, 0, 1, 1], [0.5, 0.5, 0.5, 1]], None], "image 2 of the batch, box 1"),
        ([[[math.nan, 0, 1, 1]], None, None, None], "image 0"),
        ([[[0, 0, 1]], None, None, None], r"shape \(1, 3\)"),
        ([[[0, 0, 1, 1], [0, 1]], None, None, None], "image 0 of the batch: boxes are no numbers"),
    ],
)
def test_wrong_boxes_are_named(model, samples, boxes, message):
    with pytest.raises(InputError, match=message):
        region_loss(model, samples, target_region_boxes=boxes)


def test_lists_tensors_and_none_are_boxes():
    two = torch.tensor([[0, 0, 0.5, 1]] * 2)
    flat, owners = flatten_boxes([[[0, 0, 1, 1]], None, two, [], list(two), two.numpy()], 6, torch.device("cpu"))
    assert flat.shape == (7, 4)
    assert owners.tolist() == [0, 2, 2, 4, 4, 5, 5]


# --- the losses -------------------------------------------------------------------------------------------------------


def slow_regions(model, embeds, boxes) -> list[list[torch.Tensor]]:
    """Per image the projected region vectors, one box at a time."""
    features = model.extract_region_features(embeds, boxes, (56, 56))
    return [[F.normalize(model.region_proj(f), dim=0) for f in of_image] for of_image in features]


def slow_cross_entropy(logits: list[torch.Tensor], label: int) -> torch.Tensor:
    return torch.stack(logits).logsumexp(dim=0) - logits[label]


def slow_loss(model, samples) -> torch.Tensor:
    """The objective in plain loops, from its definition in `region.py` or `foreground.py`."""
    if model.region_objective == "foreground":
        return slow_foreground_loss(model, samples)
    reference, target = embeds_of(model, samples)
    names, scale = samples["target_names"], model.region_logit_scale.clamp(0, math.log(100)).exp()
    regions = slow_regions(model, target, samples["target_region_boxes"])
    fused = model.fuse(reference, *model.tokenize(samples["text_input"]))
    sides = {"gallery": model.target_tokens(target), "query": F.normalize(model.region_token_proj(fused), dim=-1)}
    looked_at = {"tokens": ["gallery"], "compose": ["query"], "both": ["gallery", "query"]}
    queries = model.extract_query_features(reference, samples["text_input"])
    losses = []
    for i in range(4):
        others = [j for j in range(4) if j == i or names[j] != names[i]]
        if model.region_objective in looked_at:
            for region, side in product(regions[i], looked_at[model.region_objective]):
                scores = [scale * max(token @ region for token in sides[side][j]) for j in others]
                losses.append(slow_cross_entropy(scores, others.index(i)))
        elif model.region_objective == "query" and regions[i]:
            scored = [j for j in others if regions[j]]
            scores = [scale * max(queries[i] @ region for region in regions[j]) for j in scored]
            losses.append(slow_cross_entropy(scores, scored.index(i)))
        elif model.region_objective == "pairs":
            own = slow_regions(model, reference, samples["region_boxes"])[i]
            for row, column in best_assignment(own, regions[i]):
                negatives = [region for j in others if j != i for region in regions[j]]
                scores = [scale * (own[row] @ region) for region in [regions[i][column], *negatives]]
                losses.append(slow_cross_entropy(scores, 0))
    return torch.stack(losses).mean()


def slow_foreground_loss(model, samples) -> torch.Tensor:
    """`foreground` in plain loops: images whose other patches are not there at all."""
    names = samples["target_names"]
    boxes = samples["region_boxes"], samples["target_region_boxes"]
    embeds = [list(of_images) for of_images in embeds_of(model, samples)]
    parts = [[seen_part(e, b) for e, b in zip(*of_side, strict=True)] for of_side in zip(embeds, boxes, strict=True)]
    total = 0
    for of_reference, of_target in ((embeds[0], parts[1]), (parts[0], embeds[1]), (parts[0], parts[1])):
        losses = []
        for i in (i for i in range(4) if of_reference[i] is not None and of_target[i] is not None):
            query = model.extract_query_features(of_reference[i][None], [TEXTS[i]])[0]
            others = [j for j in range(4) if (j == i or names[j] != names[i]) and of_target[j] is not None]
            tokens = [model.target_tokens(of_target[j][None])[0] for j in others]
            scores = [max(query @ token for token in of_image) / model.temp for of_image in tokens]
            losses.append(slow_cross_entropy(scores, others.index(i)))
        total += torch.stack(losses).mean()
    return total


def seen_part(embeds, boxes) -> torch.Tensor | None:
    """The patches (n, D) of an image (P + 1, D) that its boxes have; None without boxes."""
    kept = [1 + 4 * row + column for row, column in product(range(4), range(4))
            if any(slow_has(box, column, row) for box in (4 * boxes).tolist())]  # fmt: skip
    return embeds[kept] if kept else None


def slow_has(box: list[float], column: int, row: int) -> bool:
    """Whether a box, in cells, covers a third of a cell's width and height, or has its centre there."""
    x1, y1, x2, y2 = box
    width, height = min(x2, column + 1) - max(x1, column), min(y2, row + 1) - max(y1, row)
    centre = int((x1 + x2) / 2), int((y1 + y2) / 2)
    by_width, by_height = width > 1 / 3 or centre[0] == column, height > 1 / 3 or centre[1] == row
    return by_width and by_height


def best_assignment(own, theirs) -> list[tuple[int, int]]:
    """All one-to-one matches tried, the one with the greatest sum of cosines."""
    few, many, turned = (own, theirs, False) if len(own) <= len(theirs) else (theirs, own, True)
    chosen = max(
        permutations(range(len(many)), len(few)),
        key=lambda order: sum(float(few[i] @ many[j]) for i, j in enumerate(order)),
    )
    return [(j, i) if turned else (i, j) for i, j in enumerate(chosen)]


@pytest.mark.parametrize("names", [["a", "b", "c", "d"], ["a", "b", "a", "d"]], ids=["distinct", "a target twice"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_equals_the_slow_loop(model, samples, objective, names):
    model.region_objective = objective
    with torch.no_grad():
        found = region_loss(model, samples, target_names=names)
        expected = slow_loss(model, samples | {"target_names": names})
    print(f"{objective}: loss {found.item():.4f}, difference to the slow loop {abs(found - expected).item():.1e}")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found > 0


def test_the_same_image_is_no_negative(model, samples):
    with torch.no_grad():
        distinct = region_loss(model, samples)
        masked = region_loss(model, samples, target_names=["a", "b", "a", "d"])
        unknown = region_loss(model, {n: v for n, v in samples.items() if n != "target_names"})
    assert masked < distinct
    assert unknown == distinct


def gradient_norms(model, samples, objective) -> dict[str, float]:
    model.region_objective = objective
    model.zero_grad(set_to_none=True)
    region_loss(model, samples).backward()
    parts = {"cross-attention": "crossattention", "prompts": "prompt_tokens"}
    parts |= {name: name for name in ("vision_proj", "text_proj", "ln_vision", "region_proj", "temp")}
    named = list(model.named_parameters())
    squares = {g: sum(float(p.grad.square().sum()) for n, p in named if part in n and p.grad is not None)
               for g, part in parts.items()}  # fmt: skip
    return {group: square**0.5 for group, square in squares.items()}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_each_objective_trains(model, samples, objective):
    norms = gradient_norms(model, samples, objective)
    print(objective, {name: f"{norm:.1e}" for name, norm in norms.items()})
    assert (norms["cross-attention"] > 0) == (objective != "pairs")
    assert (norms["vision_proj"] > 0) == (objective in ("tokens", "both", "foreground"))
    assert (norms["text_proj"] > 0) == (objective in ("query", "foreground"))
    assert (norms["region_proj"] > 0) == (objective != "foreground")
    assert (norms["temp"] > 0) == (objective == "foreground")  # SPRC's own loss, on other tokens
    assert norms["ln_vision"] > 0
    assert norms["prompts"] == 0
    assert all(p.grad is None for p in model.visual_encoder.parameters())
    assert bool(model.region_logit_scale.grad) == (objective != "foreground")
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_moved_permuted_and_empty_boxes(model, samples, objective):
    model.region_objective = objective
    boxes = samples["target_region_boxes"]
    moved = [b.clone() for b in boxes]
    moved[2] = torch.tensor([[0.05, 0.6, 0.35, 0.95], [0.3, 0.05, 0.6, 0.2], [0.7, 0.3, 0.95, 0.6]])
    reordered = [b.flip(0) for b in boxes]
    shuffled = [boxes[i] for i in (2, 3, 0, 1)]
    with torch.no_grad():
        real = region_loss(model, samples)
        losses = {
            "moved": region_loss(model, samples, target_region_boxes=moved),
            "shuffled": region_loss(model, samples, target_region_boxes=shuffled),
            "reordered": region_loss(model, samples, target_region_boxes=reordered),
            "empty": region_loss(model, samples, region_boxes=None, target_region_boxes=None),
        }
    print(objective, f"real {real:.4f}", {name: f"{loss:.4f}" for name, loss in losses.items()})
    assert losses["moved"] != real
    assert losses["shuffled"] != real
    torch.testing.assert_close(losses["reordered"], real, atol=1e-6, rtol=0)
    assert losses["empty"] == 0
    reference = [b.flip(0) for b in samples["region_boxes"]]
    torch.testing.assert_close(region_loss(model, samples, region_boxes=reference), real, atol=1e-6, rtol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("empty", [None, [None] * 4, [[]] * 4, [torch.zeros(0, 4)] * 4])
def test_a_batch_without_boxes_has_a_valid_graph(model, samples, objective, empty):
    model.region_objective = objective
    loss = region_loss(model, samples, region_boxes=empty, target_region_boxes=empty)
    assert loss == 0
    loss.backward()
    used = {name for name in OBJECTIVES[objective] if name != "region_logit_scale"}
    assert all(not getattr(model, name).weight.grad.any() for name in used)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_batch_of_one_and_one_image_with_boxes_are_never_negative(model, samples, objective):
    model.region_objective = objective
    one = {name: value[:1] for name, value in samples.items()}
    assert region_loss(model, one) == 0  # nothing to tell it from
    alone = [None, None, [[0.1, 0.1, 0.6, 0.6]], None]
    loss = region_loss(model, samples, region_boxes=alone, target_region_boxes=alone)
    assert loss > 0 if objective in (*TOKENS, "foreground") else loss == 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_slivers_and_the_whole_image_stay_finite_in_half_precision(model, samples, objective):
    model.region_objective = objective
    odd = [[[0, 0, 1, 1], [0.5, 0, 0.5001, 1]], [[0, 0.9999, 1, 1]], [[0, 0, 1e-6, 1e-6]], [[0.99999, 0.99999, 1, 1]]]
    for dtype in (torch.bfloat16, torch.float16):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=dtype):
            loss = region_loss(model, samples, region_boxes=odd, target_region_boxes=odd)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_share_of_revealed_patches_is_uniform_up_to_its_greatest():
    torch.manual_seed(0)
    revealed = revealed_patches(torch.zeros(2000, 10_000, dtype=torch.bool))
    shares = revealed.float().mean(dim=1).sort().values
    torch.testing.assert_close(shares, torch.linspace(0, MOST_REVEALED, 2000), atol=0.02, rtol=0)


def test_only_a_training_reveals_patches_and_only_outside_the_boxes(model, samples):
    embeds, boxes = model.encode_images(samples["target"]), samples["target_region_boxes"]
    of_boxes, has_boxes = model.seen_by_views(embeds, boxes)
    torch.manual_seed(0)
    drawn = [model.train().seen_by_views(embeds, boxes) for _ in range(200)]
    assert all(torch.equal(has, has_boxes) for _, has in drawn)
    whole, inside = torch.stack([views for views, _ in drawn])[:, has_boxes].unbind(dim=2)  # (200, n, 17) each
    own, first = of_boxes[has_boxes, 1], torch.arange(17) == 0
    assert whole.all()
    assert inside[:, own].all()
    assert not inside[..., first].any()  # CLS has seen everything
    seen = inside.float().mean(dim=0)[~own & ~first]
    torch.testing.assert_close(seen, torch.full_like(seen, MOST_REVEALED / 2), atol=0.12, rtol=0)
    assert torch.equal(model.eval().seen_by_views(embeds, boxes)[0], of_boxes)


def test_four_arguments_are_enough_for_pairs_and_tokens(model, samples):
    arguments = (*embeds_of(model, samples), samples["region_boxes"], samples["target_region_boxes"])
    known = {"target_names": samples["target_names"]}
    for objective in ("pairs", "tokens"):
        model.region_objective = objective
        assert model.compute_region_loss(*arguments, **known) == region_loss(model, samples)
    for objective, needed in (("query", "query"), ("compose", "fused"), ("both", "fused"), ("foreground", "text")):
        model.region_objective = objective
        with pytest.raises(InputError, match=f"needs {needed}: give {needed}="):
            model.compute_region_loss(*arguments)
    model.region_objective = "foreground"
    assert model.compute_region_loss(*arguments, text=TEXTS, **known) == region_loss(model, samples)
    with pytest.raises(InputError, match="pairs, tokens, query, compose, both, foreground"):
        model.region_objective = "all"


def test_nothing_is_computed_twice(model, samples, monkeypatch):
    calls = []
    original = model.target_tokens
    monkeypatch.setattr(model, "target_tokens", lambda embeds, bias: calls.append(1) or original(embeds))
    model(samples)
    assert len(calls) == 1


def test_matching_is_one_to_one_and_best():
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((3, 5), (5, 3), (4, 4), (1, 1)):
        own = F.normalize(torch.randn(rows, 6, generator=generator), dim=1)
        theirs = F.normalize(torch.randn(columns, 6, generator=generator), dim=1)
        owner = torch.zeros(max(rows, columns), dtype=torch.long)
        found = match_regions(own @ theirs.T, owner[:rows], owner[:columns])
        assert sorted(zip(*(part.tolist() for part in found), strict=True)) == sorted(best_assignment(own, theirs))


def test_the_scale_is_clamped(model, samples):
    with torch.no_grad():
        for value, expected in ((-3.0, 1.0), (9.0, 100.0), (2.0, math.exp(2.0))):
            model.region_logit_scale.fill_(value)
            assert model.region_scale.item() == pytest.approx(expected, rel=1e-5)


# --- the switch -------------------------------------------------------------------------------------------------------


def test_switched_off_the_losses_are_sprcs_to_the_last_bit(small_yaml, samples):
    results = []
    for use in (False, True):
        torch.manual_seed(0)
        model = load_model("blip2_cir_align_prompt", small_yaml, use_region_loss=use)
        torch.manual_seed(1)  # dropout is on
        losses = model(samples)
        sum(losses[name] for name in ("loss_itc", "loss_rtc", "loss_align")).backward()
        results.append((losses, {n: p.grad for n, p in model.named_parameters() if not n.startswith("region_")}))
    (off, off_grads), (on, on_grads) = results
    assert set(on) - set(off) == {"loss_region"}
    assert all(torch.equal(off[name], on[name]) for name in off)
    assert all(torch.equal(g, on_grads[n]) for n, g in off_grads.items() if g is not None)


def test_region_parameters_are_created_last_and_frozen_when_unused(small_yaml):
    torch.manual_seed(0)
    model = load_model("blip2_cir_align_prompt", small_yaml)
    after = torch.rand(1)
    names = [f"{name}.{part}" for name in ("region_proj", "region_token_proj") for part in ("weight", "bias")]
    assert list(model.state_dict())[-4:] == names
    assert trained_region_parameters(model) == set()
    torch.manual_seed(0)
    model = load_model("blip2_cir_align_prompt", small_yaml, use_region_loss=True)
    assert torch.equal(torch.rand(1), after)
    for objective, own in OBJECTIVES.items():
        model.region_objective = objective
        assert trained_region_parameters(model) == set(own)
    model.use_region_loss = False
    assert trained_region_parameters(model) == set()


def trained_region_parameters(model) -> set[str]:
    named = model.named_parameters()
    return {name.split(".")[0] for name, p in named if name.startswith("region_") and p.requires_grad}


def test_checkpoints_with_and_without_regions(model, samples, small_yaml, tmp_path):
    save_model(model, 0, tmp_path / "with.pt")
    again = load_model("blip2_cir_align_prompt", small_yaml, is_eval=True, weights=str(tmp_path / "with.pt"),
                       use_region_loss=True)  # fmt: skip
    assert region_loss(again, samples) == region_loss(model, samples)
    model.use_region_loss = False
    save_model(model, 0, tmp_path / "without.pt")
    names = set(torch.load(tmp_path / "without.pt")["Blip2QformerCirAlignPrompt"])
    assert not any(name.startswith("region_") for name in names)
    report = load_checkpoint(again, tmp_path / "without.pt")
    modules = {f"{name}.{part}" for name in ("region_proj", "region_token_proj") for part in ("weight", "bias")}
    assert set(report.fresh) == modules | {"region_logit_scale"}
    assert torch.isfinite(region_loss(again, samples))


def test_the_tables_of_objectives_and_parameters_agree(model):
    assert set(OBJECTIVES) == set(REGION_WEIGHTS)
    stems = {pattern.removesuffix(".*") for pattern in FORK_ADDS}
    assert stems == {name for names in OBJECTIVES.values() for name in names}
    assert {n for n in model.initial_values() if n.startswith("region_")} == {
        n for n, _ in model.named_parameters() if n.startswith("region_")
    }


def test_on_without_boxes_is_an_error(model, samples):
    without = {name: value for name, value in samples.items() if "boxes" not in name}
    with pytest.raises(InputError, match="give `box_file`"):
        model(without)
