"""The model against numbers recorded from upstream SPRC. `SPRC_REFERENCE_DIR` points these tests at other numbers.

The folder holds `meta.json`, `vocab.txt` and weights, inputs, outputs and grads as `.safetensors`. A folder may hold
the images of the first few samples only, and only some of the outputs and gradients: then those are compared.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from upstream_reference import Reference, build_model, samples_of

from lavis.models.blip2_models.Qformer import attention_mask
from lavis.models.blip2_models.scores import token_scores
from sprc.training.gradients import total_loss

PASSES = (("fusion",), ("text", "text_only"), ("target",))  # in the order in which `forward` runs them, two at once
LOSSES = ("loss_itc", "loss_rtc", "loss_align")


@dataclass
class Run:
    """One forward and backward pass, with everything that passed by."""

    model: nn.Module
    losses: dict[str, Tensor]
    seen: dict[str, Tensor]


def hidden_states(model: nn.Module, seen: dict[str, list[Tensor]]) -> None:
    """Record what leaves `ln_vision`, the Q-Former's embeddings and each of its layers, pass by pass."""
    modules = {"ln_vision": model.ln_vision, "0": model.Qformer.model.layernorm}
    modules |= {str(i + 1): layer for i, layer in enumerate(model.Qformer.model.encoder.layer)}
    for name, module in modules.items():
        seen[name] = []
        module.register_forward_hook(
            lambda module, inputs, output, name=name: seen[name].append(
                output[0] if isinstance(output, tuple) else output
            )
        )


@pytest.fixture(scope="module")
def run(reference) -> Run:
    model = build_model(reference)
    calls: dict[str, list[Tensor]] = {}
    hidden_states(model, calls)
    losses = model(samples_of(reference))
    total_loss(losses, reference.meta["loss_weights"]).backward()
    seen = {"ref.ln_vision": calls["ln_vision"][0], "target.ln_vision": calls["ln_vision"][1]}
    layers = len(model.Qformer.model.encoder.layer)
    for number, names in enumerate(PASSES):
        states = [f"hidden_states.{i}" for i in range(layers)] + ["last_hidden_state"]
        for i, state in enumerate(states):
            parts = calls[str(i)][number].chunk(len(names))
            seen |= {f"{name}.{state}": part for name, part in zip(names, parts, strict=True)}
    return Run(model, losses, seen | features(model, reference, seen))


@torch.no_grad()
def features(model: nn.Module, reference: Reference, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features, similarities and what the public methods return."""
    ids, mask = model.tokenize(reference.captions)
    queries = reference.meta["config"]["qformer"]["num_query_token"]
    ref, target = seen["ref.ln_vision"], seen["target.ln_vision"]
    target_feats, query = model.target_tokens(target), model.extract_query_features(ref, reference.captions)
    _, prompted = model.sentence_features(seen["fusion.last_hidden_state"][:, :queries], ids, mask)
    return {
        "input_ids": ids,
        "text_attention_mask": mask,
        "qformer_attention_mask": attention_mask(mask, queries + mask.shape[1])[:, 0, 0].long(),
        "fusion_feats": query,
        "target_feats": target_feats,
        "text_only_feat": prompted,
        "sim_i2t_before_temp": token_scores(query, target_feats),
        "sim_r2t_before_temp": token_scores(prompted, target_feats),
        "extract.target.image_features": target_feats,
        "extract.reference.image_features": model.target_tokens(ref),
        "inference.sim": model.inference(ref, target_feats, reference.captions),
    }


def report(what: str, differences: dict[str, float]) -> None:
    worst = max(differences, key=differences.get)
    print(f"{what}: {len(differences)} compared, largest difference {differences[worst]:.2e} at {worst}")


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return (found.double() - expected.double()).abs().max().item()


def test_vision_parity(reference):
    model, differences = build_model(reference), {}
    images = reference.inputs["reference"].float()
    blocks = {}
    for i, block in enumerate(model.visual_encoder.blocks):
        block.register_forward_hook(lambda module, inputs, output, i=i: blocks.update({f"ref.block.{i}": output}))
    for name, prefix in (("target", "target"), ("reference", "ref")):
        if name in reference.inputs:
            found = model.encode_frozen(reference.inputs[name].float())
            differences[f"{prefix}.visual_encoder"] = difference(
                found, reference.outputs[f"{prefix}.visual_encoder"][: len(found)]
            )
    for name, found in blocks.items():
        expected = reference.outputs[name]
        if reference.meta["config"]["vit"]["kind"] == "clip":
            expected = expected.transpose(0, 1)  # upstream's CLIP blocks have (tokens, B, D)
        differences[name] = difference(found, expected[: len(images)])
    report("ViT", differences)
    assert len(blocks) == reference.meta["config"]["vit"]["depth"]
    assert max(differences.values()) < 1e-4, differences


def test_hidden_states_parity(reference, run):
    elsewhere = ("after_adamw.", "ref.block", "ref.visual_encoder", "target.visual_encoder", "loss_")
    names = [name for name in reference.outputs if not name.startswith(elsewhere)]
    differences = {name: difference(run.seen[name], reference.outputs[name]) for name in names}
    report("hidden states, features, similarities", differences)
    assert len(differences) >= 10
    assert max(differences.values()) < 1e-4, differences


def test_losses_parity(reference, run):
    differences = {name: abs(run.losses[name].item() - reference.meta["losses"][name]) for name in LOSSES}
    report("losses", differences)
    assert set(run.losses) == set(reference.meta["losses"]) == set(LOSSES)
    assert max(differences.values()) < 1e-5, differences


def test_gradients_parity(reference, run):
    parameters = run.model.state_dict(keep_vars=True)
    assert len(reference.grads) >= 10
    differences = {}
    for name, expected in reference.grads.items():
        found = parameters[name].grad.reshape(expected.shape)
        differences[name] = difference(found, expected)
        relative = 0.0 if name.endswith(".self.key.bias") else 1e-4  # zero in theory: compared absolutely
        assert ((found - expected).abs() <= 1e-5 + relative * expected.abs()).all(), name
    report("gradients", differences)


def test_which_parameters_learn_parity(reference, run):
    without = {
        name for name in reference.meta["trainable_params_without_gradient"] if not name.startswith("Qformer.cls.")
    }
    parameters = {n: p for n, p in run.model.state_dict(keep_vars=True).items() if isinstance(p, nn.Parameter)}
    found = {n for n, p in parameters.items() if p.grad is None and not n.startswith(("visual_encoder.", "region_"))}
    assert found == without
    assert all(not p.requires_grad and p.grad is None for p in run.model.visual_encoder.parameters())


def test_adamw_step_parity(reference, run):
    settings = {k: v for k, v in reference.meta["adamw"].items() if k != "params"}
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    torch.optim.AdamW(parameters, fused=True, **settings).step()
    with torch.no_grad():
        after = run.model(samples_of(reference))
    recorded = reference.meta["losses_after_one_adamw_step"]
    differences = {name: abs(after[name].item() - recorded[name]) for name in LOSSES}
    report("losses after one AdamW step", differences)
    updated = {
        name.removeprefix("after_adamw."): tensor
        for name, tensor in reference.outputs.items()
        if name.startswith("after_adamw.") and "Qformer.cls." not in name
    }
    state = run.model.state_dict()
    steps = {name: difference(state[name].reshape(expected.shape), expected) for name, expected in updated.items()}
    report("parameters after one AdamW step", steps)
    with torch.no_grad():  # the run is shared with other tests
        for name, parameter in run.model.named_parameters():
            parameter.copy_(before[name])
    assert max(differences.values()) < 1e-4, differences
    assert max(steps.values()) < 1e-4, steps


def test_padding_to_the_longest_text_changes_nothing_parity(reference):
    model = build_model(reference)
    model.text_padding = "longest"
    with torch.no_grad():
        losses = model(samples_of(reference) | {"text_input": reference.captions})
    assert {name: losses[name].item() for name in LOSSES} == pytest.approx(reference.meta["losses"], abs=1e-5)
