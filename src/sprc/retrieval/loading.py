"""A model of given weights, ready to score: what evaluation and search build from their configurations."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from lavis.models import Blip2QformerCirAlignPrompt, load_model_and_preprocess
from lavis.models.model_config import load_config
from sprc.data.preprocess import Preprocess, build_preprocess
from sprc.data.vit_fingerprint import FROZEN, digest_of_tensors
from sprc.retrieval.options import ModelOptions

# What a score depends on, beside the frozen ViT.
SCORING = ("ln_vision.", "Qformer.", "query_tokens", "vision_proj.", "text_proj.")


class Framing(Protocol):
    """The settings that say how an image becomes a model's input frame."""

    @property
    def transform(self) -> str: ...
    @property
    def target_ratio(self) -> float: ...
    @property
    def backbone(self) -> str: ...


def preprocess_of(config: Framing) -> Preprocess:
    """The preprocess pipeline of a configuration, for the backbone's input size."""
    return build_preprocess(config.transform, config.target_ratio, load_config(config.backbone).vision.image_size)


def load_weights(
    config: ModelOptions, weights: Path, device: torch.device
) -> tuple[Blip2QformerCirAlignPrompt, Callable[[str], str]]:
    """The model with these weights in eval mode, and its processor of sentences."""
    model, _, process = load_model_and_preprocess(
        config.blip_model_name,
        config.backbone,
        is_eval=True,
        device=device,
        weights=str(weights),
        drop_region_proj=config.drop_region_proj,
    )
    return model, process["eval"]


@torch.no_grad()
def scoring_fingerprint(model: Blip2QformerCirAlignPrompt) -> str:
    """SHA-256 of all weights that a score depends on, the same on every device.

    On a GPU the ViT's matrices are in float16: so here the ViT counts in float16 everywhere, and the rest in float32.
    """
    state = model.state_dict()
    vit = {name: value.half() for name, value in state.items() if name.startswith(FROZEN)}
    rest = {name: value.float() for name, value in state.items() if name.startswith(SCORING)}
    return digest_of_tensors(vit | rest)
