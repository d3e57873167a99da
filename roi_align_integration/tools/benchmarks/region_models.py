"""The models of a comparison of region losses: baselines that see half of a question, and what was tried beside SPRC.

None of them is for users: `region_arms.py` names those that an arm trains.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavis.common.registry import registry
from lavis.models import Blip2QformerCirAlignPrompt

FASTER = 10.0  # rate of new parameters over that of the others
HEADS = ("region_proj", "region_token_proj")


@registry.register_model("blip2_cir_text_only")
class TextOnly(Blip2QformerCirAlignPrompt):
    """A baseline that sees no reference image, in training and retrieval."""

    def fuse(self, reference_embeds, input_ids, text_mask, image_bias=None):
        return super().fuse(torch.zeros_like(reference_embeds), input_ids, text_mask, image_bias)


@registry.register_model("blip2_cir_image_only")
class ImageOnly(Blip2QformerCirAlignPrompt):
    """A baseline that reads no sentence, in training and retrieval."""

    def tokenize(self, captions):
        return super().tokenize([""] * len(captions))


@registry.register_model("blip2_cir_changed_region")
class ChangedRegion(Blip2QformerCirAlignPrompt):
    """The region loss of one region a target: the one least like any of the reference, of which the sentence speaks."""

    def region_features(self, reference, target, ref_boxes, tgt_boxes, fused):
        side = (self.config.vision.image_size,) * 2
        with torch.no_grad():
            of_reference = self.extract_region_features(reference, ref_boxes, side)
            of_target = self.extract_region_features(target, tgt_boxes, side)
        kept = [least_like(*of_pair) for of_pair in zip(of_reference, of_target, tgt_boxes, strict=True)]
        return super().region_features(reference, target, ref_boxes, kept, fused)


def least_like(reference: Tensor, target: Tensor, boxes):
    """The box of the target feature whose greatest cosine is the least, as a list; all boxes without any to compare."""
    if len(reference) == 0 or len(target) == 0:
        return boxes
    cosines = F.normalize(target, dim=-1) @ F.normalize(reference, dim=-1).T  # (n, D) x (D, m) -> (n, m)
    return [boxes[int(cosines.amax(dim=1).argmin())]]


class FastLinear(nn.Linear):
    """A linear layer that learns `FASTER` times as fast: Adam moves what it holds by the rate, and it holds a tenth."""

    def forward(self, rows: Tensor) -> Tensor:
        return F.linear(rows, FASTER * self.weight, FASTER * self.bias)


@registry.register_model("blip2_cir_fast_heads")
class FastHeads(Blip2QformerCirAlignPrompt):
    """The projections of regions, which alone start at random, learn faster than the rest."""

    def add_region_parameters(self, config):
        super().add_region_parameters(config)
        for name in HEADS:
            slow = getattr(self, name)
            with torch.random.fork_rng(devices=[]):
                fast = FastLinear(slow.in_features, slow.out_features, device=slow.weight.device)
            fast.load_state_dict({part: value / FASTER for part, value in slow.state_dict().items()}, assign=True)
            setattr(self, name, fast)
        self._free_region_parameters()  # what is new is as frozen as what it replaces

    def initial_region_values(self):
        values = super().initial_region_values()
        return {name: value / FASTER if name.startswith(HEADS) else value for name, value in values.items()}


@registry.register_model("blip2_cir_started_head")
class StartedHead(Blip2QformerCirAlignPrompt):
    """`region_token_proj` starts from `text_proj`, which has its shape, in place of random numbers."""

    started = False

    def load_state_dict(self, state_dict, *args, **named):
        """The first weights that it takes are those that a training starts from; later ones are a run's own."""
        if not self.started:
            text = {part: state_dict[f"text_proj.{part}"].clone() for part in ("weight", "bias")}
            state_dict = dict(state_dict) | {f"region_token_proj.{part}": value for part, value in text.items()}
            self.started = True
        return super().load_state_dict(state_dict, *args, **named)
