"""Upstream's optimizer and learning rate, one step a batch."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from sprc.core.errors import InputError
from sprc.core.runtime import PRECISIONS, Runtime
from sprc.training.config import TrainConfig


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int) -> OneCycleLR:
    """Upstream's OneCycleLR. Its rise must not be one step exactly, for it divides by the steps of the rise less one:
    such a rise is made shorter by a hair, and the first step has the peak.
    """
    plan: dict[str, Any] = config.schedule()
    if plan["pct_start"] * (plan["epochs"] * steps_per_epoch) == 1:
        plan["pct_start"] *= 1 - 1e-9
    return OneCycleLR(optimizer, max_lr=config.plan.learning_rate, steps_per_epoch=steps_per_epoch, **plan)


class Optimization:
    """Upstream's AdamW and OneCycleLR, one step a batch, with the gradient scaling that fp16 needs."""

    def __init__(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int, runtime: Runtime):
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trainable, lr=config.plan.learning_rate, betas=(0.9, 0.98), eps=1e-7, weight_decay=0.05, fused=True
        )
        self.scheduler = make_schedule(self.optimizer, config, steps_per_epoch)
        self.steps = 0
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype is torch.float16)
        self.precision = next(name for name, dtype in PRECISIONS.items() if dtype is runtime.dtype)

    @property
    def learning_rate(self) -> float:
        return float(self.scheduler.get_last_lr()[0])

    @property
    def skipped_steps(self) -> int:
        """How many steps the gradient scaler has left out, for gradients that fp16 could not hold."""
        if not self.scaler.is_enabled():
            return 0
        done = max((int(state["step"]) for state in self.optimizer.state.values()), default=0)
        return self.steps - done

    def state_dict(self) -> dict:
        parts = {name: getattr(self, name).state_dict() for name in ("optimizer", "scheduler", "scaler")}
        return parts | {"precision": self.precision, "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave; the schedule keeps its own length, which `schedule_epochs` may change.

        Raises InputError if that was in another precision, as `auto` can be on another GPU.
        """
        if state["precision"] != self.precision:
            raise InputError(
                f"the run computes in {state['precision']}, and here `precision` is {self.precision}: continue with"
                f" `precision` {state['precision']}, on a device that has it"
            )
        planned = {name: self.scheduler.state_dict()[name] for name in ("total_steps", "_schedule_phases")}
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"] | planned)
        self.scaler.load_state_dict(state["scaler"])
        self.steps = state["steps"]
        if place := min(self.steps, self.last_step):
            self.scheduler.last_epoch = place - 1
            self.scheduler.step()  # the rate at this place of the schedule, which may be another one than it was

    @property
    def last_step(self) -> int:
        """The step at which the schedule ends; later ones keep its last rate."""
        return self.scheduler.total_steps - 1

    def step(self) -> None:
        """One step; the gradients are given back at its end, so that the next forward pass has their memory."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.steps += 1
        if self.steps <= self.last_step:
            self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
