"""Gradients of a step: of a whole batch at once, or of micro-batches with the negatives of the whole batch.

Micro-batches are GradCache's (https://arxiv.org/abs/2101.06983): features first, without a graph; the loss of all of
them, and its gradient for each; then micro-batch by micro-batch the features again, with a graph, and back through it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lavis.models import Blip2QformerCirAlignPrompt
from lavis.models.blip2_models.frozen_features import FrozenFeatures
from lavis.models.blip2_models.joined_batches import joined_features
from sprc.core.process_group import ALONE, World

IMAGES = ("image", "target")
NOT_OF_SAMPLES = "statistics"


def total_loss(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The weighted sum. Raises KeyError if a loss and a weight do not share a name."""
    if losses.keys() != weights.keys():
        raise KeyError(f"losses {sorted(losses)} and weights {sorted(weights)} must have the same names")
    return cast(Tensor, sum(weights[name] * loss for name, loss in losses.items()))


class StepModule(nn.Module):
    """What `DistributedDataParallel` wraps: one forward pass of a batch, up to the losses or up to the features."""

    def __init__(self, model: Blip2QformerCirAlignPrompt, world: World):
        super().__init__()
        self.model, self.world = model, world

    def forward(self, samples: dict, gradients: dict[str, Tensor] | None = None) -> dict[str, Tensor] | Tensor:
        """The losses of all ranks' batches; with `gradients` a number whose gradient is theirs through the features."""
        features = self.model.embed(samples)
        if gradients is None:
            return self.model.losses(joined_features(self.world.rows_of_all(features)))
        through = sum((features[name] * gradient).sum() for name, gradient in gradients.items())
        return cast(Tensor, through) + self._zero_of_scalars()

    def _zero_of_scalars(self) -> Tensor | int:
        """0: temperatures have their gradient already, and DDP waits until every parameter has passed."""
        return 0 * sum(p for p in self.model.parameters() if p.requires_grad and p.dim() == 0)


class Gradients:
    """Adds the gradients of a batch to a model's parameters: `gradients(samples, weights)` -> the named losses.

    Over several ranks the batch is that of all of them together. `autocast` makes the context of every forward pass;
    `scale` is applied to the loss (fp16).
    """

    def __init__(
        self,
        model: Blip2QformerCirAlignPrompt,
        autocast: Callable = nullcontext,
        scale: Callable[[Tensor], Tensor] = lambda loss: loss,
        micro_batch: int | None = None,
        world: World = ALONE,
    ):
        self.model, self.autocast, self.scale, self.micro_batch = model, autocast, scale, micro_batch
        self.world, step = world, StepModule(model, world)
        self.module: StepModule | DistributedDataParallel = step
        if world.size > 1:
            self.module = DistributedDataParallel(step, broadcast_buffers=False, gradient_as_bucket_view=True)

    def __call__(self, samples: dict, weights: dict[str, float]) -> dict[str, Tensor]:
        if self.micro_batch is not None and self.micro_batch < len(samples["text_input"]):
            return self._of_micro_batches(split_samples(samples, self.micro_batch), weights)
        with self.autocast():
            losses = self.module(samples)
        self.scale(total_loss(losses, weights)).backward()
        return losses

    def _of_micro_batches(self, parts: list[dict], weights: dict[str, float]) -> dict[str, Tensor]:
        with torch.no_grad(), self.autocast():
            # Without the images: the frozen ViT's output serves both passes.
            parts = [part | {name: self.model.frozen_features(part[name]) for name in IMAGES} for part in parts]
            states, features = zip(*((RandomState(self.model.device), self.model.embed(p)) for p in parts), strict=True)
        leaves = [{name: _leaf(value) for name, value in of_part.items()} for of_part in features]
        with self.autocast():
            losses = self.model.losses(joined_features(self.world.rows_of_all(joined_features(leaves))))
        self.scale(total_loss(losses, weights)).backward()
        for part, state, of_part in zip(parts, states, leaves, strict=True):
            gradients = {name: leaf.grad for name, leaf in of_part.items() if leaf.grad is not None}
            with self._ranks_in_step(part is parts[-1]), state.replayed():
                with self.autocast():
                    through = self.module(part, gradients)
                through.backward()
        return losses

    def _ranks_in_step(self, last: bool) -> AbstractContextManager:
        """The ranks exchange gradients once, when those of the last micro-batch have been added."""
        return nullcontext() if last or isinstance(self.module, StepModule) else self.module.no_sync()


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_() if value.is_floating_point() else value


def split_samples(samples: dict, size: int) -> list[dict]:
    """A batch of samples as batches of at most `size`."""
    own = {name: value for name, value in samples.items() if name != NOT_OF_SAMPLES}
    count = len(own["text_input"])
    places = [slice(first, first + size) for first in range(0, count, size)]
    return [{name: _part(value, chosen) for name, value in own.items()} for chosen in places]


def _part(value: Tensor | FrozenFeatures | list, chosen: slice) -> Tensor | FrozenFeatures | list:
    return value.images(chosen) if isinstance(value, FrozenFeatures) else value[chosen]


class RandomState:
    """The random state of now, to come back to: dropout then drops what it dropped."""

    def __init__(self, device: torch.device):
        self.device = device
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        with torch.random.fork_rng([self.device] if self.cuda is not None else []):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda, self.device)
            yield
