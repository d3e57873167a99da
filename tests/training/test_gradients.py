"""Micro-batches: the gradients of the whole batch, dropout as it fell, and the memory of a part."""

from shutil import which

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from training_step import NAMES, WEIGHTS, assert_same_step, gradients_of, make_model, make_samples, weights_of

from lavis.models.blip2_models.joined_batches import joined_features
from lavis.models.blip2_models.region import OBJECTIVES
from sprc.training.gradients import Gradients, split_samples, total_loss
from sprc.training.run import compile_model


@pytest.mark.parametrize("objective", [None, *OBJECTIVES])
@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_micro_batches_have_the_gradients_of_the_whole_batch(small_yaml, objective, micro_batch):
    results = []
    for size in (None, micro_batch):
        model = make_model(small_yaml, objective)
        losses = Gradients(model, micro_batch=size)(make_samples(), weights_of(objective))
        results.append((losses, gradients_of(model)))
    assert_same_step(*results)


def test_dropout_drops_the_same_in_both_passes(small_yaml):
    expected = make_model(small_yaml, "compose", dropout=True)
    torch.manual_seed(3)
    features = [expected.embed(part) for part in split_samples(make_samples(), 2)]
    losses = expected.losses(joined_features(features))
    total_loss(losses, weights_of("compose")).backward()
    state = torch.get_rng_state()

    model = make_model(small_yaml, "compose", dropout=True)
    torch.manual_seed(3)
    found = Gradients(model, micro_batch=2)(make_samples(), weights_of("compose"))
    assert_same_step((found, gradients_of(model)), (losses, gradients_of(expected)))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_vit_sees_every_image_once(small_yaml, monkeypatch):
    model, seen = make_model(small_yaml), []
    original = model.visual_encoder.forward_features
    monkeypatch.setattr(model.visual_encoder, "forward_features", lambda x: seen.append(len(x)) or original(x))
    Gradients(model, micro_batch=2)(make_samples(), WEIGHTS)
    assert sum(seen) == 10


def test_a_scaled_loss_has_scaled_gradients(small_yaml):
    plain, scaled = make_model(small_yaml), make_model(small_yaml)
    Gradients(plain)(make_samples(), WEIGHTS)
    Gradients(scaled, scale=lambda loss: 8 * loss, micro_batch=2)(make_samples(), WEIGHTS)
    eighth = {name: gradient / 8 for name, gradient in gradients_of(scaled).items()}
    assert_same_step(({}, eighth), ({}, gradients_of(plain)))


@pytest.mark.slow
@pytest.mark.skipif(which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_model_has_the_same_gradients_and_names(small_yaml):
    plain, compiled = make_model(small_yaml, "compose"), make_model(small_yaml, "compose")
    compile_model(compiled, images=True)
    results = [(Gradients(m)(make_samples(), weights_of("compose")), gradients_of(m)) for m in (compiled, plain)]
    assert_same_step(*results, tolerance=1e-5)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_every_block_of_the_vit_and_the_qformer_is_compiled(small_yaml):
    """A backend that compiles nothing, and counts what it is given."""
    model, counter = make_model(small_yaml, "compose"), CompileCounter()
    compile_model(model, images=False, backend=counter)
    Gradients(model)(make_samples(), weights_of("compose"))
    qformer = counter.frame_count
    compile_model(model, images=True, backend=counter)
    model.encode_frozen(make_samples()["image"])
    assert qformer > 0
    assert counter.frame_count > qformer


def test_split_samples_are_the_samples():
    parts = split_samples(make_samples(), 2)
    assert [len(part["text_input"]) for part in parts] == [2, 2, 1]
    assert [name for part in parts for name in part["target_names"]] == NAMES
    assert torch.equal(torch.cat([part["target"] for part in parts]), make_samples()["target"])
