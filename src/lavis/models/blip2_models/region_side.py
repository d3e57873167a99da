"""The region side of the model: parameters, features and loss; the mathematics is in `region.py`, `foreground.py`."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from lavis.models.blip2_models.foreground import (
    foreground_loss,
    outside_bias,
    patches_in_boxes,
    revealed_patches,
    views_of,
)
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
from lavis.models.blip2_models.scores import INITIAL_TEMPERATURE, unit
from lavis.models.model_config import ModelConfig
from sprc.core.errors import InputError

# The scale of region scores, 1 / temperature: learned in its logarithm, and kept between these, as in CLIP.
REGION_SCALES = (1.0, 100.0)
T = TypeVar("T")


class RegionSide(nn.Module):
    """What a model has for region features and the region loss; the model brings what is declared here.

    Shapes: B batch, P patches, D ViT width, N regions, Q query tokens, H hidden size, E embed_dim.
    """

    config: ModelConfig
    temp: nn.Parameter

    def add_region_parameters(self, config: ModelConfig) -> None:
        """Create what the objectives train, frozen until `use_region_loss`. Other parameters keep what a seed gives."""
        with torch.random.fork_rng(devices=[]):
            self.region_proj = nn.Linear(config.vision.width, config.embed_dim)
            self.region_token_proj = nn.Linear(config.qformer.hidden_size, config.embed_dim)
        self.region_logit_scale = nn.Parameter(torch.tensor(-math.log(INITIAL_TEMPERATURE)))
        self._region_objective, self._use_region_loss = "tokens", False
        self.region_bias = 0.0
        self._free_region_parameters()

    def initial_region_values(self) -> dict[str, Tensor]:
        """Initial values of the region parameters, by name, on the CPU."""
        values: dict[str, Tensor] = {}
        with torch.random.fork_rng(devices=[]):
            for name in ("region_proj", "region_token_proj"):
                own = getattr(self, name)
                fresh = nn.Linear(own.in_features, own.out_features, device="cpu")
                values |= {f"{name}.{part}": value for part, value in fresh.state_dict().items()}
        return values | {"region_logit_scale": torch.tensor(-math.log(INITIAL_TEMPERATURE), device="cpu")}

    def target_tokens(self, image_embeds: Tensor, image_bias: Tensor | None = None) -> Tensor:
        """The model's own: `ln_vision` output (B, P + 1, D) -> (B, Q, E), L2-normalised."""
        raise NotImplementedError

    def tokenize(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """The model's own: B captions -> ids and mask, (B, L) each."""
        raise NotImplementedError

    def foreground_features(
        self,
        reference: Tensor,
        target: Tensor,
        ref_boxes: Sequence | None,
        tgt_boxes: Sequence | None,
        text: tuple[Tensor, Tensor],
    ) -> dict[str, Tensor]:
        """The model's own: what `foreground_loss` needs, of each image alone."""
        raise NotImplementedError

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
        """One of `OBJECTIVES`, see `region.py` and `foreground.py`. Setting another raises InputError.

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
    def sees_foreground(self) -> bool:
        """Whether a training sees images through their boxes."""
        return self.use_region_loss and self.region_objective == "foreground"

    @property
    def reads_boxes(self) -> bool:
        """Whether a training needs the boxes of a batch: for the region loss, or for the bias of the attention."""
        return self.use_region_loss or self.region_bias > 0

    @property
    def _region_tokens(self) -> tuple[str, ...]:
        return TOKENS.get(self.region_objective, ())

    def _free_region_parameters(self) -> None:
        used = OBJECTIVES[self.region_objective] if self.use_region_loss else ()
        for name in {name for names in OBJECTIVES.values() for name in names}:
            getattr(self, name).requires_grad_(name in used)

    def extract_region_features(
        self, image_embeds: Tensor, boxes: Sequence | None, image_size: tuple[int, int] = (224, 224)
    ) -> list[Tensor]:
        """Pooled features of regions: RoIAlign over the patch grid, not projected, not normalised.

        Args:
            image_embeds: `ln_vision` output (B, P + 1, D), CLS first.
            boxes: B box lists or tensors (n_i, 4), xyxy in [0, 1] of the input frame, or None.
            image_size: (height, width) of the input frame in pixels.

        Returns:
            B tensors (n_i, D), float32.

        Raises:
            InputError: a box is not in [0, 1] or has no area, or `image_size` does not give that many tokens.
        """
        flat, owners = flatten_boxes(boxes, len(image_embeds), image_embeds.device)
        grid = grid_size(image_embeds.shape[1], image_size, self.config.vision.patch_size)
        pooled = pool_regions(image_embeds, flat, owners, grid)
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
        text: list[str] | None = None,
        target_names: Sequence[str] | None = None,
    ) -> Tensor:
        """The region-level contrastive loss of `region_objective`, see `region.py` and `foreground.py`.

        Args:
            ref_image_embeds, tgt_image_embeds: `ln_vision` output (B, P + 1, D) of references and targets.
            ref_boxes, tgt_boxes: B box lists or tensors (n_i, 4), xyxy in [0, 1] of the input frame, or None.
            fused: the queries fused with reference and sentence (B, Q, H); `compose` and `both` need them.
            query: composed query features (B, E), L2-normalised; `query` needs them.
            target_tokens: target tokens (B, Q, E), L2-normalised; computed if None, for an objective with them.
            text: B processed captions; `foreground` needs them, and nothing else.
            target_names: B image names; an image that is in the batch more than once is not its own negative.

        Returns:
            A 0-d float32 tensor, never negative; 0, with a gradient of 0, for a batch without any region.

        Raises:
            InputError: a wrong box, or an objective without the features that it needs.
        """
        images = ref_image_embeds, tgt_image_embeds, ref_boxes, tgt_boxes
        features: dict[str, Tensor | None] = {"query": query, "target_tokens": target_tokens}
        if self.region_objective == "foreground":
            features |= self.foreground_features(*images, self.tokenize(self._given("text", text)))
        else:
            features |= self.region_features(*images, fused)
        if target_tokens is None and "target_tokens" in self._region_tokens:
            features["target_tokens"] = self.target_tokens(tgt_image_embeds)
        features |= image_ids(target_names, tgt_image_embeds.device)
        return self.region_loss(features, len(tgt_image_embeds))

    def region_features(
        self,
        reference: Tensor,
        target: Tensor,
        ref_boxes: Sequence | None,
        tgt_boxes: Sequence | None,
        fused: Tensor | None,
    ) -> dict[str, Tensor]:
        """Regions, their owners, and what the objective needs in addition to `query` and `target_tokens`.

        Arguments are those of `compute_region_loss`. A subclass may choose other regions.
        """
        with torch.autocast(target.device.type, enabled=False):
            regions, owners = self._project_regions(target, tgt_boxes)
            features = {"regions": regions, "region_owners": owners}
            if self.region_objective == "pairs":
                regions, owners = self._project_regions(reference, ref_boxes)
                features |= {"reference_regions": regions, "reference_region_owners": owners}
            if "region_tokens" in self._region_tokens:
                features["region_tokens"] = unit(self.region_token_proj(self._given("fused", fused).float()))
            return features

    def seen_by_views(self, image_embeds: Tensor, boxes: Sequence | None) -> tuple[Tensor, Tensor]:
        """What two views of every image see, (B, 2, P + 1) bool, and which images have boxes: `views_of`.

        In training the second view also sees some of the other patches, at random as dropout is.
        """
        patches = self._patches_in(image_embeds, boxes)
        return views_of(patches, revealed_patches(patches) if self.training else None)

    def image_bias(self, image_embeds: Tensor, boxes: Sequence | None) -> Tensor | None:
        """What is added to the logits of cross-attention in training, (B, 1, 1, P + 1); None for nothing.

        It is `-region_bias` for a patch outside the boxes, and 0 for a patch in a box, for CLS, and for all of an image
        without boxes. A training sets `region_bias`, and lets it fall to 0: retrieval is SPRC's.

        Args:
            image_embeds: `ln_vision` output (B, P + 1, D).
            boxes: B box lists or tensors (n_i, 4), xyxy in [0, 1] of the input frame, or None.

        Raises InputError for a box that is not in [0, 1], or has no area.
        """
        if not (self.training and self.region_bias > 0):
            return None
        return outside_bias(self._patches_in(image_embeds, boxes), self.region_bias)

    def _patches_in(self, image_embeds: Tensor, boxes: Sequence | None) -> Tensor:
        """(B, P) bool: which patches of each image are in its boxes."""
        flat, owners = flatten_boxes(boxes, len(image_embeds), image_embeds.device)
        return patches_in_boxes(flat, owners, len(image_embeds), self.own_grid(image_embeds))

    def region_loss(self, features: Mapping[str, Tensor | None], batch: int) -> Tensor:
        """The objective's loss of what `region_features` gave for `batch` images, a 0-d float32 tensor."""
        given = {name: value for name, value in features.items() if value is not None}
        device = self.temp.device
        with torch.autocast(device.type, enabled=False):
            same = same_image(given.get("target_ids"), batch, device)
            if self.region_objective == "foreground":
                queries = given["query"], given["foreground_query"]
                tokens = given["target_tokens"], given["foreground_tokens"]
                return foreground_loss(queries, tokens, given["has_boxes"], 1 / self.temp, same)
            scale, regions, owners = self.region_scale, given["regions"], given["region_owners"]
            if self.region_objective == "pairs":
                reference = given["reference_regions"], given["reference_region_owners"]
                loss = pairs_loss(*reference, regions, owners, scale, same)
            elif self.region_objective == "query":
                loss = query_loss(regions, owners, self._given("query", given.get("query")), scale, same)
            else:
                sides = [tokens_loss(regions, owners, given[name], scale, same) for name in self._region_tokens]
                loss = cast(Tensor, sum(sides)) / len(sides)
            return loss + self._zero_of_region_parameters()

    def _given(self, name: str, value: T | None) -> T:
        if value is None:
            raise InputError(f"the region objective {self.region_objective} needs {name}: give {name}=")
        return value

    def _zero_of_region_parameters(self) -> Tensor:
        """0, with a gradient of 0 on all that the objective trains: so a batch without regions has a valid graph."""
        own = (getattr(self, name) for name in OBJECTIVES[self.region_objective])
        parameters = (p for part in own for p in ([part] if isinstance(part, nn.Parameter) else part.parameters()))
        return 0 * cast(Tensor, sum(parameter.sum() for parameter in parameters))

    def boxes_of(self, samples: dict) -> tuple[Sequence | None, Sequence | None]:
        """The boxes of references and targets. Raises InputError if the samples have none."""
        names = ("region_boxes", "target_region_boxes")
        absent = [name for name in names if name not in samples]
        if absent:
            raise InputError(
                f"this training needs boxes, but the samples have no {' and no '.join(absent)}: give `box_file`"
            )
        return samples[names[0]], samples[names[1]]

    def own_grid(self, image_embeds: Tensor) -> tuple[int, int]:
        """(height, width) of the patch grid of the model's own input frame."""
        side = self.config.vision.image_size
        return grid_size(image_embeds.shape[1], (side, side), self.config.vision.patch_size)

    def _project_regions(self, image_embeds: Tensor, boxes: Sequence | None) -> tuple[Tensor, Tensor]:
        """Regions in the retrieval space, (N, E), L2-normalised, and their owners (N,)."""
        flat, owners = flatten_boxes(boxes, len(image_embeds), image_embeds.device)
        pooled = pool_regions(image_embeds, flat, owners, self.own_grid(image_embeds))
        return unit(self.region_proj(pooled)), owners

    @property
    def region_scale(self) -> Tensor:
        """1 / temperature of the region scores. SPRC's own `temp` has no part in it."""
        return self.region_logit_scale.float().clamp(*map(math.log, REGION_SCALES)).exp()
