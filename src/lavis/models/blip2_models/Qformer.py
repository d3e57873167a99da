"""The Q-Former and its four SPRC passes, on transformers' `Blip2QFormerModel`.

BLIP-2: https://arxiv.org/abs/2301.12597; SPRC: https://arxiv.org/abs/2310.05473.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from lavis.models.model_config import QformerConfig
from lavis.models.weight_names import speak_upstream_qformer


class Qformer(nn.Module):
    """Shapes: B batch, Q query tokens, L text tokens, P + 1 image tokens of width `vision_width`, H hidden size.

    Text masks are (B, L), 1 for a token and 0 for padding. Its state dict has LAVIS's names (`weight_names.py`).
    """

    def __init__(self, config: QformerConfig, vision_width: int):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.model = Blip2QFormerModel(_transformers_config(config, vision_width))
        for embedding in (self.word_embeddings, self.position_embeddings):
            nn.init.normal_(embedding.weight, std=0.02)
        speak_upstream_qformer(self)

    def fuse(
        self,
        queries: Tensor,
        input_ids: Tensor,
        text_mask: Tensor,
        image_embeds: Tensor,
        image_bias: Tensor | None = None,
    ) -> Tensor:
        """Pass 1: [queries | text], the queries cross-attending to the reference image -> (B, Q + L, H).

        `image_bias` (B, 1, 1, P + 1) is added to the logits of the cross-attention.
        """
        embeds = torch.cat([queries, self._embed_text(input_ids)], dim=1)  # (B, Q, H), (B, L, H) -> (B, Q + L, H)
        return self._run(embeds, text_mask, image_embeds, queries.shape[1], image_bias)

    def encode_composed(self, fused_queries: Tensor, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Pass 2: the fused outputs (B, Q, H) in the place of the queries, no image -> (B, Q + L, H); [CLS] is at Q."""
        return self._run(self._composed(fused_queries, input_ids), text_mask)

    def encode_image(self, queries: Tensor, image_embeds: Tensor, image_bias: Tensor | None = None) -> Tensor:
        """Pass 3: the queries alone on an image -> (B, Q, H); `image_bias` as in `fuse`."""
        return self._run(queries, None, image_embeds, queries.shape[1], image_bias)

    def encode_views(
        self, queries: Tensor, image_embeds: Tensor, seen: Tensor, image_bias: Tensor | None = None
    ) -> Tensor:
        """Pass 3 for V views of every image at once, see `fuse_views` -> (B, V, Q, H)."""
        no_text = torch.zeros(len(seen), 0, dtype=torch.long, device=seen.device)
        return self.fuse_views(queries, no_text, no_text, image_embeds, seen, image_bias)

    def fuse_views(
        self,
        queries: Tensor,
        input_ids: Tensor,
        text_mask: Tensor,
        image_embeds: Tensor,
        seen: Tensor,
        image_bias: Tensor | None = None,
    ) -> Tensor:
        """The queries of pass 1 for V views of every image at once, `seen` (B, V, P + 1) bool -> (B, V, Q, H).

        Queries and text of a view attend to each other, and its queries to what the view sees. Each view is what a pass
        of its own would give, but keys and values of an image are computed once. `image_bias` as in `fuse`, for all
        views.
        """
        views, count, length = seen.shape[1], queries.shape[1], input_ids.shape[1]
        embeds = torch.cat([queries.repeat(1, views, 1), self._embed_text(input_ids).repeat(1, views, 1)], dim=1)
        numbers = torch.arange(views, device=seen.device)
        of_query, of_text = numbers.repeat_interleave(count), numbers.repeat_interleave(length)  # (V Q,), (V L,)
        view = torch.cat([of_query, of_text])
        seen_by_query = seen[:, of_query][:, None]  # (B, V, P + 1) -> (B, 1, V Q, P + 1)
        if image_bias is not None:
            seen_by_query = torch.where(seen_by_query, image_bias, -torch.inf)
        output = self.model(
            query_embeds=embeds,  # (B, V (Q + L), H)
            query_length=views * count,
            attention_mask=attention_mask(text_mask.repeat(1, views), len(view)) & (view == view[:, None]),
            encoder_hidden_states=image_embeds,
            encoder_attention_mask=seen_by_query,
        )
        return output.last_hidden_state[:, : views * count].unflatten(1, (views, count))

    @torch.no_grad()
    def image_attention(self, queries: Tensor, image_embeds: Tensor) -> Tensor:
        """Where the queries look in pass 3: the weights of the last cross-attention -> (B, Q, P + 1), float32.

        They are the mean over the heads, so a row sums to 1. sdpa gives no weights: they are computed from what that
        layer sees, without dropout.
        """
        last = [layer for layer in self.model.encoder.layer if layer.has_cross_attention][-1]
        attention = last.get_submodule("crossattention.attention")
        seen: list[Tensor] = []
        handle = attention.register_forward_pre_hook(
            lambda module, given, named: seen.append(named["hidden_states"]), with_kwargs=True
        )
        try:
            self.encode_image(queries, image_embeds)
        finally:
            handle.remove()
        return _attention_weights(attention, seen[0], image_embeds)

    def encode_prompted_text(self, prompts: Tensor, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Pass 4: [CLS], the prompts (B, Q, H), the rest of the text, no image -> (B, Q + L, H); [CLS] is at 0."""
        return self._run(self._prompted(prompts, input_ids), text_mask)

    def encode_composed_and_prompted(
        self, fused_queries: Tensor, prompts: Tensor, input_ids: Tensor, text_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Passes 2 and 4, which see no image and are of one length, as one batch -> (B, Q + L, H) each."""
        embeds = torch.cat([self._composed(fused_queries, input_ids), self._prompted(prompts, input_ids)])
        composed, prompted = self._run(embeds, text_mask.repeat(2, 1)).chunk(2)  # (2B, Q + L, H)
        return composed, prompted

    def _composed(self, fused_queries: Tensor, input_ids: Tensor) -> Tensor:
        return torch.cat([fused_queries, self._embed_text(input_ids)], dim=1)

    def _prompted(self, prompts: Tensor, input_ids: Tensor) -> Tensor:
        words = self.word_embeddings(input_ids)  # (B, L, H)
        embeds = torch.cat([words[:, :1], prompts, words[:, 1:]], dim=1)  # -> (B, Q + L, H)
        return embeds + self.position_embeddings.weight[: embeds.shape[1]]

    def _embed_text(self, input_ids: Tensor) -> Tensor:
        return self.word_embeddings(input_ids) + self.position_embeddings.weight[: input_ids.shape[1]]

    def _run(
        self,
        embeds: Tensor,
        text_mask: Tensor | None,
        image_embeds: Tensor | None = None,
        query_length: int = 0,
        image_bias: Tensor | None = None,
    ) -> Tensor:
        """One pass. A query length of 0 sends every token through the text feed-forward, as upstream without image."""
        output = self.model(
            query_embeds=embeds,
            query_length=query_length,
            attention_mask=None if text_mask is None else self._mask(text_mask, embeds.shape[1]),
            encoder_hidden_states=image_embeds,
            encoder_attention_mask=image_bias,
        )
        return output.last_hidden_state

    def _mask(self, text_mask: Tensor, length: int) -> Tensor:
        """What `_run` gives transformers as the mask of `length` tokens, of which the last are the text."""
        return attention_mask(text_mask, length)


def attention_mask(text_mask: Tensor, length: int) -> Tensor:
    """(B, L) text mask -> (B, 1, length, length) boolean mask: the tokens that are not text are always attended.

    [CLS] is always attended too. So one mask serves passes 1, 2 and 4, in which other tokens stand before the padding.
    transformers takes a mask of this shape as it is. A 2-D one it would inspect, and the host would wait for the GPU.
    """
    batch, text_length = text_mask.shape
    extra = text_mask.new_ones(batch, length - text_length)
    mask = torch.cat([extra, text_mask], dim=1).bool()  # (B, L) -> (B, length)
    return mask[:, None, None, :].expand(batch, 1, length, length)


def _attention_weights(attention: Any, states: Tensor, image_embeds: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) of a cross-attention's own layers: (B, Q, H), (B, P + 1, D) -> (B, Q, P + 1)."""
    heads = (-1, attention.attention_head_size)
    query = attention.query(states).unflatten(2, heads)  # (B, Q, H) -> (B, Q, heads, d)
    key = attention.key(image_embeds).unflatten(2, heads)  # (B, P + 1, D) -> (B, P + 1, heads, d)
    with torch.autocast(states.device.type, enabled=False):
        logits = torch.einsum("bqhd,bphd->bhqp", query.float(), key.float()) * attention.scaling
        return logits.softmax(dim=-1).mean(dim=1)  # (B, heads, Q, P + 1) -> (B, Q, P + 1)


def _transformers_config(config: QformerConfig, vision_width: int) -> Blip2QFormerConfig:
    return Blip2QFormerConfig(  # type: ignore[call-arg]  # attn_implementation is of every configuration
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        max_position_embeddings=config.max_position_embeddings,
        layer_norm_eps=1e-12,
        initializer_range=config.initializer_range,
        cross_attention_frequency=config.cross_attention_freq,
        encoder_hidden_size=vision_width,
        use_qformer_text_input=True,
        attn_implementation="sdpa",
    )
