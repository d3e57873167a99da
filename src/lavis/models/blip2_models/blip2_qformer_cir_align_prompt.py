"""SPRC's model: composed image retrieval with sentence-level prompts (https://arxiv.org/abs/2310.05473)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertTokenizer

from lavis.common.devices import moved
from lavis.common.registry import registry
from lavis.models.blip2_models.Qformer import Qformer
from lavis.models.blip2_models.region import (
    OBJECTIVES,
    TOKENS,
    flatten_boxes,
    grid_size,
    image_ids,
    pairs_loss,
    pool_regions,
    query_loss,
    same_image,
    tokens_loss,
)
from lavis.models.eva_vit import build_vision_encoder, use_half_precision
from lavis.models.model_config import ModelConfig
from sprc.core.errors import InputError

INITIAL_TEMPERATURE = 0.07
# The scale of region scores, 1 / temperature: learned in its logarithm, and kept between these, as in CLIP.
REGION_SCALES = (1.0, 100.0)


@dataclass
class Blip2Features:
    """What `extract_features` returns; a field that the mode does not compute is None. Projections are normalised."""

    image_embeds: Tensor | None = None
    image_embeds_proj: Tensor | None = None
    text_embeds: Tensor | None = None
    text_embeds_proj: Tensor | None = None
    multimodal_embeds: Tensor | None = None


@registry.register_model("blip2_cir_align_prompt")
class Blip2QformerCirAlignPrompt(nn.Module):
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
        with torch.random.fork_rng(devices=[]):  # what else a seed gives stays what it was
            self.region_proj = nn.Linear(config.vision.width, config.embed_dim)
            self.region_token_proj = nn.Linear(hidden, config.embed_dim)
        self.region_logit_scale = nn.Parameter(torch.tensor(-math.log(INITIAL_TEMPERATURE)))
        self._region_objective, self._use_region_loss = "tokens", False
        self._free_region_parameters()

    @property
    def use_region_loss(self) -> bool:
        """Whether `forward` returns `loss_region`; setting it frees or freezes the parameters of the objective."""
        return self._use_region_loss

    @use_region_loss.setter
    def use_region_loss(self, use: bool) -> None:
        self._use_region_loss = bool(use)
        self._free_region_parameters()

    @property
    def region_objective(self) -> str:
        """`pairs`, `tokens`, `query`, `compose` or `both`, see `region.py`. Setting another raises InputError.

        A model by itself has `tokens`, for which images and boxes are enough; a training chooses (`TrainConfig`).
        """
        return self._region_objective

    @region_objective.setter
    def region_objective(self, name: str) -> None:
        if name not in OBJECTIVES:
            raise InputError(f"unknown region objective {name!r}: use one of {', '.join(OBJECTIVES)}")
        self._region_objective = name
        self._free_region_parameters()

    @property
    def _region_tokens(self) -> tuple[str, ...]:
        return TOKENS.get(self.region_objective, ())

    def _free_region_parameters(self) -> None:
        used = OBJECTIVES[self.region_objective] if self.use_region_loss else ()
        for name in {name for names in OBJECTIVES.values() for name in names}:
            getattr(self, name).requires_grad_(name in used)

    def initial_values(self) -> dict[str, Tensor]:
        """Initial values of the parameters that a published file may lack, by name, on the CPU."""
        prompts = torch.empty(self.prompt_tokens.shape, device="cpu").normal_(std=0.02)
        values = {"prompt_tokens": prompts, "temp": torch.tensor(INITIAL_TEMPERATURE, device="cpu")}
        with torch.random.fork_rng(devices=[]):
            for name in ("region_proj", "region_token_proj"):
                own = getattr(self, name)
                fresh = nn.Linear(own.in_features, own.out_features, device="cpu")
                values |= {f"{name}.{part}": value for part, value in fresh.state_dict().items()}
        return values | {"region_logit_scale": torch.tensor(-math.log(INITIAL_TEMPERATURE), device="cpu")}

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
            samples: `image` and `target` (B, 3, S, S), normalised; `text_input`, B processed captions. With
                `use_region_loss` also `region_boxes` and `target_region_boxes`: B box lists or tensors (n, 4), xyxy in
                [0, 1] of the input frame, or None; and `target_names`, B image names, where they are known.

        Returns:
            `loss_itc` (query to target), `loss_rtc` (prompted text to target), `loss_align` (fused queries to prompts)
            and, with `use_region_loss`, `loss_region`: 0-d float32 tensors, without weights.

        Raises InputError where the region loss is on and the samples have no boxes.
        """
        return self.losses(self.embed(samples))

    def embed(self, samples: dict) -> dict[str, Tensor]:
        """All that the losses need of a batch, of its own images alone: batches can be joined (`joined_features`).

        `query`, `prompted` (B, E), `target_tokens` (B, Q, E), `fused_mean` (B, H); with `use_region_loss` `regions`
        (N, E), `region_owners` (N,), what the objective compares them with, and, where names are known, `target_ids`
        (B,). Arguments and errors are those of `forward`.
        """
        input_ids, text_mask = self.tokenize(samples["text_input"])
        reference, target = self._encode_pair(samples["image"], samples["target"])  # (B, P + 1, D) each
        fused = self._fuse(reference, input_ids, text_mask)  # (B, Q, H)
        query, prompted = self._sentence_features(fused, input_ids, text_mask)  # (B, E) each
        features = {"query": query, "prompted": prompted, "target_tokens": self._target_features(target)}
        features["fused_mean"] = fused.float().mean(dim=1)  # (B, Q, H) -> (B, H)
        if self.use_region_loss:
            features |= self._region_features(reference, target, *self._boxes_of(samples), fused)
            features |= image_ids(samples.get("target_names"), target.device)
        return features

    def losses(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """The named losses of what `embed` gave, of one batch or of several that were joined."""
        losses = {
            "loss_itc": self._contrastive_loss(features["query"], features["target_tokens"]),
            "loss_rtc": self._contrastive_loss(features["prompted"], features["target_tokens"]),
            "loss_align": self._align_loss(features["fused_mean"]),
        }
        if self.use_region_loss:
            losses["loss_region"] = self._region_loss(features, len(features["query"]))
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

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) or frozen features (B, P + 1, D) -> `ln_vision` output (B, P + 1, D), CLS first, float32.

        Trains `ln_vision`, never the ViT.
        """
        return self.normalize_vision(self.encode_frozen(images))

    def _encode_pair(self, reference: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """`encode_images` of both; what has to pass the ViT passes as one batch."""
        if reference.dim() == 4 and target.dim() == 4:
            both = self.encode_frozen(torch.cat([reference, target]))  # (2B, 3, S, S) -> (2B, P + 1, D)
            reference, target = both.chunk(2)
        return self.encode_images(reference), self.encode_images(target)

    @torch.no_grad()
    def encode_frozen(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> the frozen ViT's output before `ln_vision` (B, P + 1, D): float16 matrices on CUDA.

        What has three axes is such an output already, out of a cache, and is given back.
        """
        if images.dim() == 3:
            return images
        with torch.autocast(images.device.type, dtype=torch.float16, enabled=images.is_cuda):
            return self.visual_encoder.forward_features(images)

    def normalize_vision(self, frozen: Tensor) -> Tensor:
        """`ln_vision` in float32, whatever the precision around it."""
        with torch.autocast(frozen.device.type, enabled=False):
            return self.ln_vision(frozen.float())

    @torch.no_grad()
    def extract_target_features(self, image: Tensor, mode: str = "mean") -> tuple[Tensor, Tensor]:
        """Gallery side: images (B, 3, S, S) -> target tokens (B, Q, E), L2-normalised, and `ln_vision` output
        (B, P + 1, D), both float32. `mode` is accepted as upstream accepts it: "mean" is its only value.
        """
        if mode != "mean":
            raise InputError(f"extract_target_features knows mode 'mean', not {mode!r}")
        image_embeds = self.encode_images(image)
        return self._target_features(image_embeds), image_embeds

    @torch.no_grad()
    def extract_query_features(self, reference_embeds: Tensor, text: list[str]) -> Tensor:
        """Query side: `ln_vision` output (B, P + 1, D) of the references and B captions -> (B, E), L2-normalised."""
        input_ids, text_mask = self.tokenize(text)
        return self._query_feature(self._fuse(reference_embeds, input_ids, text_mask), input_ids, text_mask)

    @torch.no_grad()
    def inference(self, reference_embeds: Tensor, target_feats: Tensor, text: list[str]) -> Tensor:
        """Scores of B queries against N gallery images (N, Q, E) -> (B, N): the largest cosine over target tokens."""
        return token_scores(self.extract_query_features(reference_embeds, text), target_feats)

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
            return Blip2Features(multimodal_embeds=self._fuse(image_embeds, *self.tokenize(samples["text_input"])))
        embeds = self.Qformer.encode_image(self._queries(len(image_embeds)), image_embeds)
        return Blip2Features(image_embeds=embeds, image_embeds_proj=_unit(self.vision_proj(embeds)))

    def extract_region_features(
        self, image_embeds: Tensor, boxes: Sequence | None, image_size: tuple[int, int] = (224, 224)
    ) -> list[Tensor]:
        """Pooled features of regions: RoIAlign over the patch grid, not projected, not normalised.

        Args:
            image_embeds: `ln_vision` output (B, P + 1, D), CLS first.
            boxes: B box lists or tensors (n_i, 4), xyxy in [0, 1] of the input frame; None where there are none.
            image_size: (height, width) of the input frame in pixels.

        Returns:
            B tensors (n_i, D), float32.

        Raises:
            InputError: a box is not in [0, 1] or has no area, or `image_size` does not give that many tokens.
        """
        flat, owners = flatten_boxes(boxes, len(image_embeds), image_embeds.device)
        pooled = self._pool(image_embeds, flat, owners, image_size)
        return list(pooled.split(torch.bincount(owners.cpu(), minlength=len(image_embeds)).tolist()))

    def compute_region_loss(
        self,
        ref_image_embeds: Tensor,
        tgt_image_embeds: Tensor,
        ref_boxes: Sequence | None,
        tgt_boxes: Sequence | None,
        *,
        fused: Tensor | None = None,
        query: Tensor | None = None,
        target_tokens: Tensor | None = None,
        target_names: Sequence[str] | None = None,
    ) -> Tensor:
        """The region-level contrastive loss of `region_objective`, see `region.py`.

        Args:
            ref_image_embeds, tgt_image_embeds: `ln_vision` output (B, P + 1, D) of references and targets.
            ref_boxes, tgt_boxes: B box lists or tensors (n_i, 4), xyxy in [0, 1] of the input frame, or None.
            fused: the queries fused with reference and sentence (B, Q, H); `compose` and `both` need them.
            query: composed query features (B, E), L2-normalised; `query` needs them.
            target_tokens: target tokens (B, Q, E), L2-normalised; computed where an objective lacks them.
            target_names: B image names; an image that is in the batch more than once is not its own negative.

        Returns:
            A 0-d float32 tensor, never negative; 0, with a gradient of 0, for a batch without any region.

        Raises:
            InputError: a wrong box, or an objective without the features that it needs.
        """
        features = {"query": query, "target_tokens": target_tokens} | self._region_features(
            ref_image_embeds, tgt_image_embeds, ref_boxes, tgt_boxes, fused
        )
        if target_tokens is None and "target_tokens" in self._region_tokens:
            features["target_tokens"] = self._target_features(tgt_image_embeds)
        features |= image_ids(target_names, tgt_image_embeds.device)
        return self._region_loss(features, len(tgt_image_embeds))

    def _region_features(
        self, reference: Tensor, target: Tensor, ref_boxes: Sequence | None, tgt_boxes: Sequence | None, fused: Tensor
    ) -> dict[str, Tensor]:
        """Regions, their owners, and what the objective needs beside `query` and `target_tokens`."""
        with torch.autocast(target.device.type, enabled=False):
            regions, owners = self._project_regions(target, tgt_boxes)
            features = {"regions": regions, "region_owners": owners}
            if self.region_objective == "pairs":
                regions, owners = self._project_regions(reference, ref_boxes)
                features |= {"reference_regions": regions, "reference_region_owners": owners}
            if "region_tokens" in self._region_tokens:
                features["region_tokens"] = _unit(self.region_token_proj(self._given("fused", fused).float()))
            return features

    def _region_loss(self, features: dict[str, Tensor | None], batch: int) -> Tensor:
        """The objective's loss of the features of `batch` images."""
        regions, owners = features["regions"], features["region_owners"]
        with torch.autocast(regions.device.type, enabled=False):
            scale, same = self._region_scale(), same_image(features.get("target_ids"), batch, regions.device)
            if self.region_objective == "pairs":
                reference = features["reference_regions"], features["reference_region_owners"]
                loss = pairs_loss(*reference, regions, owners, scale, same)
            elif self.region_objective == "query":
                loss = query_loss(regions, owners, self._given("query", features["query"]), scale, same)
            else:
                sides = [features[name] for name in self._region_tokens]
                loss = sum(tokens_loss(regions, owners, tokens, scale, same) for tokens in sides) / len(sides)
            return loss + self._zero_of_region_parameters()

    def _given(self, name: str, features: Tensor | None) -> Tensor:
        if features is None:
            raise InputError(
                f"the region objective {self.region_objective} needs {name} features: give {name}=, as forward does"
            )
        return features

    def _zero_of_region_parameters(self) -> Tensor:
        """0, with a gradient of 0 on all that the objective trains: a batch without regions has a valid graph."""
        own = (getattr(self, name) for name in OBJECTIVES[self.region_objective])
        parameters = (p for part in own for p in ([part] if isinstance(part, nn.Parameter) else part.parameters()))
        return 0 * sum(parameter.sum() for parameter in parameters)

    def _boxes_of(self, samples: dict) -> tuple[Sequence | None, Sequence | None]:
        names = ("region_boxes", "target_region_boxes")
        absent = [name for name in names if name not in samples]
        if absent:
            raise InputError(
                f"the region loss is on, but the samples have no {' and no '.join(absent)}: give `box_file`"
            )
        return samples[names[0]], samples[names[1]]

    def _pool(self, image_embeds: Tensor, boxes: Tensor, owners: Tensor, image_size: tuple[int, int]) -> Tensor:
        grid = grid_size(image_embeds.shape[1], image_size, self.config.vision.patch_size)
        return pool_regions(image_embeds, boxes, owners, grid)

    def _project_regions(self, image_embeds: Tensor, boxes: Sequence | None) -> tuple[Tensor, Tensor]:
        """Regions in the retrieval space, (N, E), L2-normalised, and their owners (N,)."""
        flat, owners = flatten_boxes(boxes, len(image_embeds), image_embeds.device)
        side = self.config.vision.image_size
        return _unit(self.region_proj(self._pool(image_embeds, flat, owners, (side, side)))), owners

    def _region_scale(self) -> Tensor:
        """1 / temperature of the region scores. SPRC's own `temp` has no part in it."""
        return self.region_logit_scale.float().clamp(*map(math.log, REGION_SCALES)).exp()

    def _queries(self, batch: int) -> Tensor:
        return self.query_tokens.expand(batch, -1, -1)  # (1, Q, H) -> (B, Q, H)

    def _fuse(self, reference_embeds: Tensor, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        queries = self._queries(len(reference_embeds))
        fused = self.Qformer.fuse(queries, input_ids, text_mask, reference_embeds)  # (B, Q + L, H)
        return fused[:, : queries.shape[1]]  # -> (B, Q, H)

    def _query_feature(self, fused: Tensor, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        composed = self.Qformer.encode_composed(fused, input_ids, text_mask)  # (B, Q + L, H)
        return _unit(self.text_proj(composed[:, fused.shape[1]]))  # [CLS] follows the Q fused tokens -> (B, E)

    def _sentence_features(self, fused: Tensor, input_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """`_query_feature`, and the feature of the sentence behind the prompts: (B, E) each, of one pass."""
        prompts = self.prompt_tokens.expand(len(input_ids), -1, -1)
        composed, prompted = self.Qformer.encode_composed_and_prompted(fused, prompts, input_ids, text_mask)
        words = torch.cat([composed[:, fused.shape[1]], prompted[:, 0]])  # [CLS] of both -> (2B, H)
        return _unit(self.text_proj(words)).chunk(2)

    def _target_features(self, image_embeds: Tensor) -> Tensor:
        output = self.Qformer.encode_image(self._queries(len(image_embeds)), image_embeds)  # (B, Q, H)
        return _unit(self.vision_proj(output))  # -> (B, Q, E)

    def _text_features(self, captions: list[str]) -> Blip2Features:
        input_ids, text_mask = self.tokenize(captions)
        no_prompts = self.prompt_tokens.new_zeros(len(input_ids), 0, self.prompt_tokens.shape[-1])
        embeds = self.Qformer.encode_prompted_text(no_prompts, input_ids, text_mask)
        return Blip2Features(text_embeds=embeds, text_embeds_proj=_unit(self.text_proj(embeds)))

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


def token_scores(queries: Tensor, target_tokens: Tensor) -> Tensor:
    """(B, E), (N, Q, E) -> (B, N): the largest cosine over each image's tokens, as one float32 matrix product."""
    with torch.autocast(queries.device.type, enabled=False):
        scores = queries.float() @ target_tokens.float().flatten(0, 1).T  # (B, E) x (E, N Q) -> (B, N Q)
        return scores.view(len(queries), *target_tokens.shape[:2]).amax(dim=2)


def _unit(features: Tensor) -> Tensor:
    """L2-normalised over the last axis, in float32."""
    with torch.autocast(features.device.type, enabled=False):
        return F.normalize(features.float(), dim=-1)


def _token_parameter(count: int, hidden: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(1, count, hidden).normal_(std=0.02))
