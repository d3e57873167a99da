"""SPRC's model: composed image retrieval with sentence-level prompts (https://arxiv.org/abs/2310.05473)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertTokenizer

from lavis.common.errors import InputError
from lavis.common.registry import registry
from lavis.models.blip2_models.Qformer import Qformer
from lavis.models.eva_vit import build_vision_encoder, use_half_precision
from lavis.models.model_config import ModelConfig

INITIAL_TEMPERATURE = 0.07


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
    as upstream).
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

    def initial_values(self) -> dict[str, Tensor]:
        """Initial values of the parameters that a published file may lack, by name, on the CPU."""
        prompts = torch.empty(self.prompt_tokens.shape, device="cpu").normal_(std=0.02)
        return {"prompt_tokens": prompts, "temp": torch.tensor(INITIAL_TEMPERATURE, device="cpu")}

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
            samples: `image` and `target` (B, 3, S, S), normalised; `text_input`, B processed captions.

        Returns:
            `loss_itc` (query to target), `loss_rtc` (prompted text to target), `loss_align` (fused queries to prompts):
            0-d float32 tensors, without weights.
        """
        input_ids, text_mask = self.tokenize(samples["text_input"])
        reference = self.encode_images(samples["image"])  # (B, 3, S, S) -> (B, P + 1, D)
        target = self.encode_images(samples["target"])

        fused = self._fuse(reference, input_ids, text_mask)  # (B, Q, H)
        query = self._query_feature(fused, input_ids, text_mask)  # (B, E)
        prompted = self._prompted_text_feature(input_ids, text_mask)  # (B, E)
        target_tokens = self._target_features(target)  # (B, Q, E)

        return {
            "loss_itc": self._contrastive_loss(query, target_tokens),
            "loss_rtc": self._contrastive_loss(prompted, target_tokens),
            "loss_align": self._align_loss(fused),
        }

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
        return tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> `ln_vision` output (B, P + 1, D), CLS first, float32. Trains `ln_vision`, never the ViT."""
        return self.normalize_vision(self.encode_frozen(images))

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

    def _queries(self, batch: int) -> Tensor:
        return self.query_tokens.expand(batch, -1, -1)  # (1, Q, H) -> (B, Q, H)

    def _fuse(self, reference_embeds: Tensor, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        queries = self._queries(len(reference_embeds))
        fused = self.Qformer.fuse(queries, input_ids, text_mask, reference_embeds)  # (B, Q + L, H)
        return fused[:, : queries.shape[1]]  # -> (B, Q, H)

    def _query_feature(self, fused: Tensor, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        composed = self.Qformer.encode_composed(fused, input_ids, text_mask)  # (B, Q + L, H)
        return _unit(self.text_proj(composed[:, fused.shape[1]]))  # [CLS] follows the Q fused tokens -> (B, E)

    def _prompted_text_feature(self, input_ids: Tensor, text_mask: Tensor) -> Tensor:
        prompts = self.prompt_tokens.expand(len(input_ids), -1, -1)
        output = self.Qformer.encode_prompted_text(prompts, input_ids, text_mask)  # (B, Q + L, H)
        return _unit(self.text_proj(output[:, 0]))

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

    def _align_loss(self, fused: Tensor) -> Tensor:
        """MSE between the mean fused query and the mean prompt, detached: prompts learn from `loss_rtc` alone."""
        with torch.autocast(fused.device.type, enabled=False):
            prompt = self.prompt_tokens.detach().mean(dim=1).expand(len(fused), -1)  # (1, Q, H) -> (B, H)
            return F.mse_loss(fused.float().mean(dim=1), prompt)


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
