"""Upstream SPRC's way of computing a step, for a comparison of speed: the same numbers, in more and slower parts."""

import torch
from torch import Tensor, nn

from lavis.models import Blip2QformerCirAlignPrompt
from lavis.models.blip2_models.Qformer import Qformer


class UpstreamQformer(Qformer):
    """Two-dimensional masks, which transformers inspects in every pass, and eager attention."""

    def _mask(self, text_mask: Tensor, length: int) -> Tensor:
        others = text_mask.new_ones(len(text_mask), length - text_mask.shape[1])
        return torch.cat([others, text_mask], dim=1)  # (B, L) -> (B, length)


class UpstreamModel(Blip2QformerCirAlignPrompt):
    """Two calls of the ViT, and every pass of the Q-Former by itself."""

    def encode_pair(self, reference: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        return self.encode_images(reference), self.encode_images(target)

    def sentence_features(self, fused: Tensor, input_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        prompts = self.prompt_tokens.expand(len(input_ids), -1, -1)
        output = self.Qformer.encode_prompted_text(prompts, input_ids, text_mask)
        prompted = nn.functional.normalize(self.text_proj(output[:, 0]).float(), dim=-1)
        return self.query_feature(fused, input_ids, text_mask), prompted


def go_upstreams_way(model: Blip2QformerCirAlignPrompt) -> None:
    """Change a model in place; its weights and their names stay."""
    model.__class__, model.Qformer.__class__ = UpstreamModel, UpstreamQformer
    model.text_padding = "max_length"
    model.Qformer.model.set_attn_implementation("eager")
    for block in model.visual_encoder.blocks:
        block.attn.fused_attn = False
