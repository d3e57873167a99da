"""The step at which a loss became no number, kept for a replay."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lavis.models import Blip2QformerCirAlignPrompt
from sprc.core.errors import InputError
from sprc.core.files import write_atomically
from sprc.core.process_group import World
from sprc.core.stop_signals import NOTHING_NEW

BROKEN_STEP = "broken_step.json"
LOWER = "lower `learning_rate`, or use `precision` bf16 or fp32"


@dataclass
class Step:
    """A step that was done: its number in the epoch, its losses on their device, its triplets."""

    number: int
    losses: dict[str, Tensor]
    triplets: list[dict]


class LossWatch:
    """Keeps the losses of the last steps on their device, to be read at intervals: reading waits for a GPU."""

    def __init__(self, model: Blip2QformerCirAlignPrompt, run_folder: Path, world: World):
        self.model, self.run_folder, self.world = model, run_folder, world
        self.recent: list[Step] = []
        self.last = Step(0, {}, [])

    def add(self, step: int, losses: dict[str, Tensor], batch: dict | list) -> None:
        """`batch` is the loader's: a dictionary has names and captions."""
        self.last = Step(step, {name: loss.detach() for name, loss in losses.items()}, triplets_of(batch))
        self.recent.append(self.last)

    def check(self, epoch: int) -> None:
        """Raises InputError if nothing good can follow: a loss that is no number, or a temperature not above 0."""
        recent, self.recent = self.recent, []
        for step in recent:
            broken = [name for name, loss in step.losses.items() if not math.isfinite(loss.item())]
            if broken:
                self._stop(epoch, step, ", ".join(broken))
        temperature = self.model.temp.item()
        if not math.isfinite(temperature):
            self._stop(epoch, self.last, "weights")
        if temperature <= 0:
            raise InputError(
                f"the temperature fell to {temperature:.4g} by epoch {epoch}, step {self.last.number}, and scores are"
                f" divided by it: lower `learning_rate` or train for fewer epochs; {NOTHING_NEW}"
            )

    def check_weights(self, epoch: int) -> None:
        """Raises InputError if a weight is no number: such a state never takes the place of a good one."""
        self.check(epoch)
        sums = torch.stack([p.detach().float().sum() for p in self.model.parameters() if p.requires_grad])
        if not sums.isfinite().all():
            self._stop(epoch, self.last, "weights")

    def _stop(self, epoch: int, step: Step, broken: str) -> None:
        """Save the step for a replay, and raise: every rank comes here with the same losses."""
        everything = [triplet for of_rank in self.world.collect(step.triplets) for triplet in of_rank]
        path = self.run_folder / BROKEN_STEP
        if self.world.is_main:
            losses = {name: str(value.item()) for name, value in step.losses.items()}
            record = {"epoch": epoch, "step": step.number, "losses": losses, "triplets": everything}
            write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False))
        images = ", ".join(triplet["reference_name"] for triplet in everything[:3])
        raise InputError(
            f"{broken} became NaN or infinite in epoch {epoch}, step {step.number}, with {len(everything)} triplets, of"
            f" the images {images or 'unknown'} and so on; all are in {path}. {LOWER}; `resume` continues from the last"
            f" state, and comes by this step again; {NOTHING_NEW}"
        )


def triplets_of(batch: dict | list) -> list[dict]:
    """Names and captions of a batch of the loader, triplet by triplet; none if it holds no names."""
    if not isinstance(batch, dict):
        return []
    names = ("reference_name", "target_name", "caption")
    return [dict(zip(names, triplet, strict=True)) for triplet in zip(*(batch[name] for name in names), strict=True)]
