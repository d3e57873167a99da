"""SPRC's model: composed image retrieval with sentence-level prompts (https://arxiv.org/abs/2310.05473)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertTokenizer

from lavis.common.devices import moved
from lavis.common.registry import registry
from lavis.models.blip2_models.frozen_features import FrozenFeatures
from lavis.models.blip2_models.lavis_features import LavisFeatures
from lavis.models.blip2_models.Qformer import Qformer
from lavis.models.blip2_models.region import PREFIX_TOKENS, image_ids
from lavis.models.blip2_models.region_side import RegionSide
from lavis.models.blip2_models.scores import INITIAL_TEMPERATURE, token_scores, unit
from lavis.models.eva_vit import build_vision_encoder, use_half_precision
from lavis.models.model_config import ModelConfig
from sprc.core.errors import InputError

Text = tuple[Tensor, Tensor]  # ids and mask, (B, L) each


@registry.register_model("blip2_cir_align_prompt")
class Blip2QformerCirAlignPrompt(RegionSide, LavisFeatures):
    """Frozen ViT -> `ln_vision` -> Q-Former -> a query feature, and 32 target tokens for every gallery image.

    Shapes: B batch, S image side, P patches, D ViT width, Q query tokens, L text tokens, H hidden size, E embed_dim.
    `text_padding` is "longest" (pad a batch to its longest text: exact, and faster) or "max_length" (to `max_txt_len`,
    as upstream). `use_region_loss` adds a region-level contrastive loss, the `region_objective` of `region.py`, to
    `forward`; without it every number is SPRC's to the last bit, and the region parameters are frozen.
    """

    def __init__(self, config: ModelConfig, tokenizer: BertTokenizer | None = None):
        super().__init__()
        self.config, self.tokenizer, self.text_padding = config, tokenizer, "longest"
        hidden = config.qformer.hidden_size
        self.visual_encoder = build_vision_encoder(config.vision)
        self.ln_vision = nn.LayerNorm(config.vision.width, eps=1e-5)
        self.Qformer = Qformer(config.qformer, config.vision.width)
        self.query_tokens = _token_parameter(config.qformer.num_query_token, hidden)
        self.prompt_tokens = _token_parameter(config.qformer.num_query_token, hidden)
        self.vision_proj = nn.Linear(hidden, config.embed_dim)
        self.text_proj = nn.Linear(hidden, config.embed_dim)
        # Part of every checkpoint, but no loss of SPRC reaches it.
        self.itm_head = nn.Linear(hidden, 2).requires_grad_(False)
        self.temp = nn.Parameter(torch.tensor(INITIAL_TEMPERATURE))
        self.add_region_parameters(config)

    def initial_values(self) -> dict[str, Tensor]:
        """Initial values of the parameters that a published file may lack, by name, on the CPU."""
        prompts = torch.empty(self.prompt_tokens.shape, device="cpu").normal_(std=0.02)
        values = {"prompt_tokens": prompts, "temp": torch.tensor(INITIAL_TEMPERATURE, device="cpu")}
        return values | self.initial_region_values()

    @property
    def device(self) -> torch.device:
        return self.temp.device

    def train(self, mode: bool = True) -> "Blip2QformerCirAlignPrompt":
        """Train or eval mode; the ViT stays in eval mode, always."""
        super().train(mode)
        self.visual_encoder.eval()
        return self

    def use_half_precision_vit(self) -> None:
        """Keep the frozen ViT's matrices in float16, as upstream does on CUDA."""
        use_half_precision(self.visual_encoder)

    def forward(self, samples: dict) -> dict[str, Tensor]:
        """The named losses of a batch of triplets.

        Args:
            samples: `image` and `target`, normalised images (B, 3, S, S) or their `FrozenFeatures`; `text_input`, B
                processed captions. With `use_region_loss` or `region_bias` also `region_boxes` and
                `target_region_boxes`: B box lists or tensors (n, 4), xyxy in [0, 1] of the input frame, or None; and
                `target_names`, B image names, if they are known.

        Returns:
            `loss_itc` (query to target), `loss_rtc` (prompted text to target), `loss_align` (fused queries to prompts)
            and, with `use_region_loss`, `loss_region`: 0-d float32 tensors, without weights.

        Raises InputError if boxes are needed and the samples have none.
        """
        return self.losses(self.embed(samples))

    def embed(self, samples: dict) -> dict[str, Tensor]:
        """All that the losses need of a batch, of its own images alone: batches can be joined (`joined_features`).

        `query`, `prompted` (B, E), `target_tokens` (B, Q, E), `fused_mean` (B, H); with `use_region_loss` also
        `region_features` or `foreground_features` and, if names are known, `target_ids` (B,). Arguments and errors are
        those of `forward`.
        """
        text = self.tokenize(samples["text_input"])  # ids and mask, (B, L) each
        reference, target = self.encode_pair(samples["image"], samples["target"])  # (B, P + 1, D) each
        boxes = self.boxes_of(samples) if self.reads_boxes else (None, None)
        if self.sees_foreground:
            features = self.foreground_features(reference, target, *boxes, text)
        else:
            of_reference, of_target = map(self.image_bias, (reference, target), boxes)  # (B, 1, 1, P + 1) each, or None
            fused = self.fuse(reference, *text, of_reference)  # (B, Q, H)
            features = self._sentence(fused, text) | {"target_tokens": self.target_tokens(target, of_target)}
            if self.use_region_loss:
                features |= self.region_features(reference, target, *boxes, fused)
        if self.use_region_loss:
            features |= image_ids(samples.get("target_names"), target.device)
        return features

    def foreground_features(
        self, reference: Tensor, target: Tensor, ref_boxes: Sequence | None, tgt_boxes: Sequence | None, text: Text
    ) -> dict[str, Tensor]:
        """`embed` for the objective `foreground`: both images seen whole, and through their boxes (`views_of`).

        Whole as ever: `query`, `prompted`, `target_tokens`, `fused_mean`. Through the boxes: `foreground_query` (B, E)
        and `foreground_tokens` (B, Q, E); `has_boxes` (B, 2) says which references and targets have any.
        """
        seen_of_reference, reference_has = self.seen_by_views(reference, ref_boxes)  # (B, 2, P + 1), (B,)
        seen_of_target, target_has = self.seen_by_views(target, tgt_boxes)
        of_reference, of_target = map(self.image_bias, (reference, target), (ref_boxes, tgt_boxes))
        views = self.Qformer.fuse_views(
            self.queries(len(reference)), *text, reference, seen_of_reference, of_reference
        )  # (B, 2, Q, H)
        fused, foreground = views.unbind(dim=1)
        tokens = self._tokens_of_views(target, seen_of_target, of_target)  # (B, 2, Q, E)
        features = self._sentence(fused, text) | {"foreground_query": self.query_feature(foreground, *text)}
        features |= dict(zip(("target_tokens", "foreground_tokens"), tokens.unbind(dim=1), strict=True))
        return features | {"has_boxes": torch.stack([reference_has, target_has], dim=1)}

    def _sentence(self, fused: Tensor, text: Text) -> dict[str, Tensor]:
        """What the losses need of the fused queries (B, Q, H): `query`, `prompted` (B, E), `fused_mean` (B, H)."""
        query, prompted = self.sentence_features(fused, *text)
        return {"query": query, "prompted": prompted, "fused_mean": fused.float().mean(dim=1)}

    def losses(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The named losses of what `embed` gave, of one batch or of several that were joined."""
        losses = {
            "loss_itc": self._contrastive_loss(features["query"], features["target_tokens"]),
            "loss_rtc": self._contrastive_loss(features["prompted"], features["target_tokens"]),
            "loss_align": self._align_loss(features["fused_mean"]),
        }
        if self.use_region_loss:
            losses["loss_region"] = self.region_loss(features, len(features["query"]))
        return losses

    def tokenize(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """B captions -> ids and mask (B, L), L at most `max_txt_len`, on the model's device."""
        if self.tokenizer is None:
            raise InputError("this model was built without a tokenizer: build it with load_model")
        tokens = self.tokenizer(
            captions,
            padding=self.text_padding,
            truncation=True,
            max_length=self.config.max_txt_len,
            return_tensors="pt",
        )
        return moved(tokens.input_ids, self.device), moved(tokens.attention_mask, self.device)

    def encode_images(self, images: Tensor | FrozenFeatures) -> Tensor:
        """Images (B, 3, S, S), or their frozen features -> `ln_vision` output (B, P + 1, D), CLS first, float32.

        Trains `ln_vision`, never the ViT.
        """
        return self.normalize_vision(self.frozen_features(images).tokens)

    def encode_pair(self, reference: Tensor | FrozenFeatures, target: Tensor | FrozenFeatures) -> tuple[Tensor, Tensor]:
        """`encode_images` of both; two batches of images pass the ViT as one."""
        if isinstance(reference, Tensor) and isinstance(target, Tensor):
            both = self.frozen_features(torch.cat([reference, target]))  # (2B, 3, S, S) -> (2B, P + 1, D)
            reference, target = map(FrozenFeatures, both.tokens.chunk(2))
        return self.encode_images(reference), self.encode_images(target)

    def frozen_features(self, images: Tensor | FrozenFeatures) -> FrozenFeatures:
        """Images (B, 3, S, S) -> the frozen ViT's output; what is such an output already is given back.

        Raises InputError for a tensor of another number of axes.
        """
        if isinstance(images, FrozenFeatures):
            return images
        if images.dim() != 4:
            raise InputError(f"images are (B, 3, S, S), not {tuple(images.shape)}; give features as FrozenFeatures")
        return FrozenFeatures(self.encode_frozen(images))

    @torch.no_grad()
    def encode_frozen(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> the frozen ViT's output before `ln_vision` (B, P + 1, D): float16 matrices on CUDA."""
        with torch.autocast(images.device.type, dtype=torch.float16, enabled=images.is_cuda):
            return self.visual_encoder.forward_features(images)

    def normalize_vision(self, frozen: Tensor) -> Tensor:
        """`ln_vision` in float32, whatever the precision around it."""
        with torch.autocast(frozen.device.type, enabled=False):
            return self.ln_vision(frozen.float())

    @torch.no_grad()
    def extract_target_features(self, image: Tensor | FrozenFeatures, mode: str = "mean") -> tuple[Tensor, Tensor]:
        """Gallery side: images (B, 3, S, S), or their frozen features -> target tokens (B, Q, E), L2-normalised, and
        `ln_vision` output (B, P + 1, D), both float32. `mode` is accepted as upstream accepts it: "mean" is its only
        value.
        """
        if mode != "mean":
            raise InputError(f"extract_target_features knows mode 'mean', not {mode!r}")
        image_embeds = self.encode_images(image)
        return self.target_tokens(image_embeds), image_embeds

    @torch.no_grad()
    def extract_query_features(self, reference_embeds: Tensor, text: list[str]) -> Tensor:
        """Query side: `ln_vision` output (B, P + 1, D) of the references and B captions -> (B, E), L2-normalised."""
        input_ids, text_mask = self.tokenize(text)
        return self.query_feature(self.fuse(reference_embeds, input_ids, text_mask), input_ids, text_mask)

    @torch.no_grad()
    def extract_target_views(self, image_embeds: Tensor, boxes: Sequence | None) -> Tensor:
        """Gallery side, with boxes: the target tokens of images seen whole, and seen through their boxes.

        Args:
            image_embeds: `ln_vision` output (B, P + 1, D).
            boxes: B box lists or tensors (n_i, 4), xyxy in [0, 1] of the input frame, or None.

        Returns:
            (B, 2, Q, E), L2-normalised. An image without boxes is seen whole twice.

        Raises InputError for a box that is not in [0, 1], or has no area.
        """
        seen, _ = self.seen_by_views(image_embeds, boxes)
        return self._tokens_of_views(image_embeds, seen)

    @torch.no_grad()
    def extract_query_views(self, reference_embeds: Tensor, text: list[str], boxes: Sequence | None) -> Tensor:
        """Query side, with boxes: the features (B, 2, E) of references seen whole, and seen through their boxes.

        Arguments and errors are those of `extract_query_features` and `extract_target_views`.
        """
        words = self.tokenize(text)
        seen, _ = self.seen_by_views(reference_embeds, boxes)
        fused = self.Qformer.fuse_views(self.queries(len(reference_embeds)), *words, reference_embeds, seen)
        return torch.stack([self.query_feature(view, *words) for view in fused.unbind(dim=1)], dim=1)

    def _tokens_of_views(self, image_embeds: Tensor, seen: Tensor, image_bias: Tensor | None = None) -> Tensor:
        """(B, P + 1, D), and what V views of each see (B, V, P + 1) -> their target tokens (B, V, Q, E)."""
        queries = self.queries(len(seen))
        return unit(self.vision_proj(self.Qformer.encode_views(queries, image_embeds, seen, image_bias)))

    @torch.no_grad()
    def inference(self, reference_embeds: Tensor, target_feats: Tensor, text: list[str]) -> Tensor:
        """Scores of B queries against N gallery images (N, Q, E) -> (B, N): the largest cosine over target tokens."""
        return token_scores(self.extract_query_features(reference_embeds, text), target_feats)

    def queries(self, batch: int) -> Tensor:
        """The learned queries for every image of a batch."""
        return self.query_tokens.expand(batch, -1, -1)  # (1, Q, H) -> (B, Q, H)

    def fuse(
        self, reference_embeds: Tensor, input_ids: Tensor, text_mask: Tensor, image_bias: Tensor | None = None
    ) -> Tensor:
        """`ln_vision` output (B, P + 1, D) of the references, and texts (B, L) -> the fused queries (B, Q, H).

        `image_bias` is what `RegionSide.image_bias` gives.
        """
        queries = self.queries(len(reference_embeds))
        fused = self.Qformer.fuse(queries, input_ids, text_mask, reference_embeds, image_bias)  # (B, Q + L, H)
        return fused[:, : queries.shape[1]]  # -> (B, Q, H)

    def query_feature(self, fused: Tensor, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Fused queries (B, Q, H) and their texts (B, L) -> the composed query feature (B, E), L2-normalised."""
        composed = self.Qformer.encode_composed(fused, input_ids, text_mask)  # (B, Q + L, H)
        return unit(self.text_proj(composed[:, fused.shape[1]]))  # [CLS] follows the Q fused tokens -> (B, E)

    def sentence_features(self, fused: Tensor, input_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """`query_feature`, and the feature of the sentence with the prompts before it: (B, E) each, of one pass."""
        prompts = self.prompt_tokens.expand(len(input_ids), -1, -1)
        composed, prompted = self.Qformer.encode_composed_and_prompted(fused, prompts, input_ids, text_mask)
        words = torch.cat([composed[:, fused.shape[1]], prompted[:, 0]])  # [CLS] of both -> (2B, H)
        query, sentence = unit(self.text_proj(words)).chunk(2)
        return query, sentence

    def target_tokens(self, image_embeds: Tensor, image_bias: Tensor | None = None) -> Tensor:
        """`ln_vision` output (B, P + 1, D) of gallery images -> their target tokens (B, Q, E), L2-normalised.

        `image_bias` is what `RegionSide.image_bias` gives.
        """
        output = self.Qformer.encode_image(self.queries(len(image_embeds)), image_embeds, image_bias)  # (B, Q, H)
        return unit(self.vision_proj(output))  # -> (B, Q, E)

    @torch.no_grad()
    def token_attention(self, image_embeds: Tensor) -> Tensor:
        """`ln_vision` output (B, P + 1, D) -> where each target token looks (B, Q, g, g), float32, in eval mode.

        It is the last cross-attention on the patch grid of the input frame, rows from top to bottom. CLS is left out
        and the rest is not scaled up again: a token's map sums to 1 minus its attention to CLS.
        """
        weights = self.Qformer.image_attention(self.queries(len(image_embeds)), image_embeds)  # (B, Q, P + 1)
        return weights[..., PREFIX_TOKENS:].unflatten(2, self.own_grid(image_embeds))  # -> (B, Q, g, g)

    def _contrastive_loss(self, queries: Tensor, target_tokens: Tensor) -> Tensor:
        """Cross-entropy of scores / temp against the diagonal, query to target only."""
        with torch.autocast(queries.device.type, enabled=False):
            logits = token_scores(queries, target_tokens) / self.temp
            return F.cross_entropy(logits, torch.arange(len(queries), device=queries.device))

    def _align_loss(self, fused_mean: Tensor) -> Tensor:
        """MSE between the mean fused query and the mean prompt, detached: prompts learn from `loss_rtc` alone."""
        with torch.autocast(fused_mean.device.type, enabled=False):
            prompt = self.prompt_tokens.detach().mean(dim=1).expand(len(fused_mean), -1)  # (1, Q, H) -> (B, H)
            return F.mse_loss(fused_mean, prompt)


def _token_parameter(count: int, hidden: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(1, count, hidden).normal_(std=0.02))
