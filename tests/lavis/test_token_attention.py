"""Where target tokens look: the weights that transformers' eager attention gives, of the last layer that has them."""

import copy

import pytest
import torch
import yaml

from lavis.models import load_model
from sprc.core.errors import InputError


@pytest.fixture(params=["", "{num_hidden_layers: 4, cross_attention_freq: 2}", "{num_hidden_layers: 3}"])
def model(request, small_yaml, tmp_path):
    torch.manual_seed(0)
    with open(small_yaml) as file:
        settings = yaml.safe_load(file)
    settings["qformer"] |= yaml.safe_load(request.param) or {}
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump(settings | {"tokenizer": "tiny_vocab.txt"}))
    return load_model("blip2_cir_align_prompt", str(path), is_eval=True)


@pytest.fixture
def image_embeds():
    return torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(1))


def eager_weights(model, image_embeds) -> list[torch.Tensor]:
    """The mean over the heads of every cross-attention, from the same weights run with eager attention."""
    slow, found = copy.deepcopy(model.Qformer), []
    slow.model.config._attn_implementation = "eager"
    for name, module in slow.named_modules():
        if name.endswith("crossattention.attention"):
            module.register_forward_hook(lambda module, given, output: found.append(output[1].mean(dim=1)))
    with torch.no_grad():
        slow.encode_image(model.queries(len(image_embeds)), image_embeds)
    return found


def test_weights_are_those_of_eager_attention(model, image_embeds):
    slow = eager_weights(model, image_embeds)
    layers = model.config.qformer.num_hidden_layers
    assert len(slow) == -(-layers // model.config.qformer.cross_attention_freq)
    fast = model.Qformer.image_attention(model.queries(3), image_embeds)
    assert (fast.shape, fast.dtype) == ((3, 4, 17), torch.float32)
    torch.testing.assert_close(fast, slow[-1], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(fast.sum(dim=2), torch.ones(3, 4))
    assert all((fast - other).abs().max() > 1e-4 for other in slow[:-1])


def test_the_last_layer_with_cross_attention_is_asked(model, image_embeds):
    layers = model.Qformer.model.encoder.layer
    last = max(number for number, layer in enumerate(layers) if number % model.config.qformer.cross_attention_freq == 0)
    before = model.token_attention(image_embeds)
    with torch.no_grad():
        layers[last].crossattention.attention.key.weight *= 2
    assert not torch.equal(model.token_attention(image_embeds), before)


def test_the_grid_is_row_by_row_without_cls(model, image_embeds):
    grid = model.token_attention(image_embeds)
    flat = eager_weights(model, image_embeds)[-1]
    assert grid.shape == (3, 4, 4, 4)
    for row in range(4):
        for column in range(4):
            expected = flat[:, :, 1 + 4 * row + column]
            torch.testing.assert_close(grid[:, :, row, column], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(grid.sum(dim=(2, 3)), 1 - flat[:, :, 0])


def hooks(model) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_no_hook_and_no_gradient_stays(model, image_embeds):
    before = hooks(model)
    assert not model.token_attention(image_embeds.requires_grad_()).requires_grad
    assert hooks(model) == before
    with pytest.raises(RuntimeError):
        model.Qformer.image_attention(model.queries(3), image_embeds[:, :, :5])
    assert hooks(model) == before
    with pytest.raises(InputError, match="give the image_size"):
        model.token_attention(image_embeds[:, :9])


def test_lower_precision_around_it_gives_float32(model, image_embeds):
    exact = model.token_attention(image_embeds)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.token_attention(image_embeds)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.02, rtol=0.1)
