"""LAVIS's own feature extractor: the part of the model's interface that SPRC does not use."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lavis.models.blip2_models.frozen_features import FrozenFeatures
from lavis.models.blip2_models.Qformer import Qformer
from lavis.models.blip2_models.scores import unit
from sprc.core.errors import InputError


@dataclass
class Blip2Features:
    """What `extract_features` returns; a field that the mode does not compute is None. Projections are normalised."""

    image_embeds: Tensor | None = None
    image_embeds_proj: Tensor | None = None
    text_embeds: Tensor | None = None
    text_embeds_proj: Tensor | None = None
    multimodal_embeds: Tensor | None = None


class LavisFeatures(nn.Module):
    """The method `extract_features` of a model, which brings the rest that is named here."""

    Qformer: Qformer
    vision_proj: nn.Linear
    text_proj: nn.Linear
    prompt_tokens: nn.Parameter

    @torch.no_grad()
    def extract_features(self, samples: dict, mode: str = "multimodal") -> Blip2Features:
        """LAVIS's feature extractor on `image` (B, 3, S, S) and/or `text_input` (B captions).

        `image`: `image_embeds` (B, Q, H), `image_embeds_proj` (B, Q, E). `text`: `text_embeds` (B, L, H),
        `text_embeds_proj` (B, L, E), the text alone. `multimodal`: `multimodal_embeds` (B, Q, H), the fused queries.
        """
        needed = {"image": ["image"], "text": ["text_input"], "multimodal": ["image", "text_input"]}.get(mode)
        if needed is None or any(samples.get(name) is None for name in needed):
            raise InputError(f"extract_features: mode {mode!r} needs {needed or 'to be image, text or multimodal'}")
        if mode == "text":
            return self._text_features(samples["text_input"])
        image_embeds = self.encode_images(samples["image"])
        if mode == "multimodal":
            return Blip2Features(multimodal_embeds=self.fuse(image_embeds, *self.tokenize(samples["text_input"])))
        embeds = self.Qformer.encode_image(self.queries(len(image_embeds)), image_embeds)
        return Blip2Features(image_embeds=embeds, image_embeds_proj=unit(self.vision_proj(embeds)))

    def _text_features(self, captions: list[str]) -> Blip2Features:
        input_ids, text_mask = self.tokenize(captions)
        no_prompts = self.prompt_tokens.new_zeros(len(input_ids), 0, self.prompt_tokens.shape[-1])
        embeds = self.Qformer.encode_prompted_text(no_prompts, input_ids, text_mask)
        return Blip2Features(text_embeds=embeds, text_embeds_proj=unit(self.text_proj(embeds)))

    def tokenize(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def encode_images(self, images: Tensor | FrozenFeatures) -> Tensor:
        raise NotImplementedError

    def queries(self, batch: int) -> Tensor:
        raise NotImplementedError

    def fuse(self, reference_embeds: Tensor, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        raise NotImplementedError
