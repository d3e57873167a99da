"""The frozen vision encoder, built from timm: EVA-CLIP-g (https://arxiv.org/abs/2211.07636) or CLIP ViT-L."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lavis.models.model_config import VisionConfig
from lavis.models.weight_names import speak_upstream_clip
from sprc.core.errors import InputError


def build_vision_encoder(config: VisionConfig) -> Eva | VisionTransformer:
    """A frozen ViT in eval mode: `forward_features` maps (B, 3, S, S) to (B, 1 + (S / patch)^2, width), CLS first.

    There is no final norm: `ln_vision`, which is trained, takes its place. Raises InputError for an unknown encoder.
    """
    if config.encoder not in ENCODERS:
        raise InputError(f"unknown vision encoder {config.encoder!r}: use {' or '.join(ENCODERS)}")
    vit = ENCODERS[config.encoder](config)
    if config.seed is not None:
        seed_weights(vit, config.seed)
    return vit.requires_grad_(False).eval()


def _sizes(config: VisionConfig) -> dict:
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "num_classes": 0,
        "global_pool": "",
    }


def _build_eva(config: VisionConfig) -> Eva:
    return Eva(**_sizes(config), norm_layer=partial(nn.LayerNorm, eps=1e-6), use_post_transformer_norm=False)


def _build_clip(config: VisionConfig) -> VisionTransformer:
    """OpenAI's CLIP ViT (https://arxiv.org/abs/2103.00020) without its last block, `ln_post` and projection."""
    vit = VisionTransformer(
        **_sizes(config),
        pre_norm=True,
        final_norm=False,
        act_layer="quick_gelu",
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )
    speak_upstream_clip(vit)
    return vit


ENCODERS: dict[str, Callable[[VisionConfig], Eva | VisionTransformer]] = {
    "eva_clip_g": _build_eva,
    "clip_L": _build_clip,
}


def use_half_precision(vit: nn.Module) -> nn.Module:
    """Linear and convolution weights in float16; norms, embeddings and the q and v biases stay float32, as upstream.

    CLIP's stacked query, key and value weights stay float32 too: upstream has no linear layer for them.
    """
    for name, module in vit.named_modules():
        stacked = isinstance(vit, VisionTransformer) and name.endswith("attn.qkv")
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not stacked:
            module.half()
    return vit


@torch.no_grad()
def seed_weights(module: nn.Module, seed: int) -> None:
    """Random weights that are the same to the last bit on every machine: uniform, variance 1 / fan-in, norms 1 and 0.

    The class token and the positions have variance 1, as a patch has: otherwise no later layer could tell places apart.
    torch's normal generator takes other code paths on other processors. So each number is made of 24 raw bits of PCG64
    and scaled by one correctly rounded float32 multiplication.
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
