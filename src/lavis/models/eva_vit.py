"""The frozen vision encoder, built from timm (EVA-CLIP: https://arxiv.org/abs/2211.07636)."""

from functools import partial

import numpy as np
import torch
from timm.models.eva import Eva
from torch import nn

from lavis.common.errors import InputError
from lavis.models.model_config import VisionConfig


def build_vision_encoder(config: VisionConfig) -> nn.Module:
    """A frozen ViT in eval mode: `forward_features` maps (B, 3, S, S) to (B, 1 + (S / patch)^2, width), CLS first.

    There is no final norm: `ln_vision`, which is trained, takes its place. Raises InputError for an unknown encoder.
    """
    if config.encoder != "eva_clip_g":
        raise InputError(f"unknown vision encoder {config.encoder!r}: this version has eva_clip_g")
    vit = Eva(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_classes=0,
        global_pool="",
        use_post_transformer_norm=False,
    )
    if config.seed is not None:
        seed_weights(vit, config.seed)
    return vit.requires_grad_(False).eval()


def use_half_precision(vit: nn.Module) -> nn.Module:
    """Linear and convolution weights in float16; norms, embeddings and the q and v biases stay float32, as upstream."""
    for module in vit.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.half()
    return vit


@torch.no_grad()
def seed_weights(module: nn.Module, seed: int) -> None:
    """Random weights that are the same to the last bit on every machine: uniform, variance 1 / fan-in, norms 1 and 0.

    The class token and the positions have variance 1, as large as a patch: else no later layer could tell places apart.
    torch's normal generator takes other code paths on other processors. Here 24 raw bits of PCG64 make each number,
    and one correctly rounded float32 multiplication scales it.
    """
    bits = np.random.PCG64(seed)
    for name, parameter in module.named_parameters():
        if parameter.dim() < 2:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        integers = (bits.random_raw(parameter.numel()) >> np.uint64(40)).astype(np.float32) - np.float32(2**23)
        fan_in = parameter[0].numel() if name.endswith("weight") else 1
        scale = np.float32((3.0 / fan_in) ** 0.5 / 2**23)
        parameter.copy_(torch.from_numpy(integers * scale).view(parameter.shape))
