"""When the state of a run is saved: after each epoch, within it as `save_every` says, and if a signal asks."""

import time
from collections.abc import Callable
from pathlib import Path

from sprc.core.process_group import World
from sprc.core.stop_signals import StopSignals
from sprc.training.config import save_interval


class Saver:
    """Counts steps and minutes; `write` saves. Every rank calls it, and all save together."""

    def __init__(
        self, run_folder: Path, save_every: str, signals: StopSignals, world: World, write: Callable[[], None]
    ):
        self.run_folder, self.signals, self.world, self.write = run_folder, signals, world, write
        self.steps, self.seconds = save_interval(save_every)
        self.since, self.last = 0, time.monotonic()

    def after_step(self) -> None:
        """Every rank saves if one has a reason to: ranks hear of a signal, and count minutes, at different times."""
        self.since += 1
        due = (self.steps and self.since >= self.steps) or (
            self.seconds and time.monotonic() - self.last >= self.seconds
        )
        due, number = self.world.largest(bool(due), self.signals.number or 0)
        self.signals.number = number or None
        if due or number:
            self.save()

    def save(self) -> None:
        """Save, and then stop if a signal has asked for it."""
        self.write()
        self.since, self.last = 0, time.monotonic()
        self.signals.raise_if_asked(f"saved; continue with `resume` {self.run_folder}")
