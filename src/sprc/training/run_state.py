"""A training run on disk: everything that the next step depends on, so that a resumed run ends as one never stopped."""

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from lavis.models import Blip2QformerCirAlignPrompt
from lavis.models.checkpoint import check_names, read_tensors
from sprc.core.errors import InputError
from sprc.core.files import atomic_writer, write_atomically
from sprc.core.process_group import ALONE, World
from sprc.data.vit_fingerprint import FROZEN, frozen_fingerprint
from sprc.training.config import STATE_FILE, TrainConfig
from sprc.training.optimization import Optimization
from sprc.training.run_inputs import input_fingerprints

CSV_FILES = ("train_metrics.csv", "validation_metrics.csv")


@dataclass
class LossMeter:
    """Sums of named losses, kept on their device: reading them is what waits for the GPU."""

    sums: dict[str, Tensor | float] = field(default_factory=dict)
    count: int = 0

    def add(self, values: dict[str, Tensor | float]) -> None:
        for name, value in values.items():
            value = value.detach().double() if isinstance(value, Tensor) else value
            self.sums[name] = self.sums.get(name, 0) + value
        self.count += 1

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.count for name, total in self.sums.items()}


@dataclass
class Best:
    """The best epoch so far, by the monitored metric; of equal ones the first."""

    monitor: str
    epoch: int = -1
    metrics: dict[str, float] = field(default_factory=dict)

    def update(self, epoch: int, metrics: dict[str, float]) -> bool:
        """Whether `metrics` are better than all before."""
        if self.metrics and metrics[self.monitor] <= self.metrics[self.monitor]:
            return False
        self.epoch, self.metrics = epoch, metrics
        return True


@dataclass
class Progress:
    """Where a run stands: `step` steps of `epoch` are done, whose losses are in `meter`."""

    best: Best
    epoch: int = 0
    step: int = 0
    meter: LossMeter = field(default_factory=LossMeter)

    def next_epoch(self) -> None:
        self.epoch, self.step, self.meter = self.epoch + 1, 0, LossMeter()


def save_state(
    run_folder: Path,
    model: Blip2QformerCirAlignPrompt,
    optimization: Optimization,
    progress: Progress,
    config: TrainConfig,
    world: World = ALONE,
) -> None:
    """Write `STATE_FILE`; the one before it stays until this one is whole on the disk. Every rank has a part in it."""
    own_sums = {name: float(total) for name, total in progress.meter.sums.items()}
    sums, random_states = world.collect(own_sums), world.collect(random_state(model.device))
    if not world.is_main:
        return
    state = {
        "config": {name: _plain(value) for name, value in config.settings().items()},
        "frozen": frozen_fingerprint(model),
        "inputs": input_fingerprints(config),
        "model": {name: value for name, value in model.state_dict().items() if not name.startswith(FROZEN)},
        "optimization": optimization.state_dict(),
        "random": random_states,
        "epoch": progress.epoch,
        "step": progress.step,
        "sums": sums,
        "count": progress.meter.count,
        "best": asdict(progress.best),
        "csv": {name: _text(run_folder / name) for name in CSV_FILES},
    }
    with atomic_writer(run_folder / STATE_FILE) as file:
        torch.save(state, file)


def _plain(value):
    return str(value) if isinstance(value, Path) else value


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8 ({error}): remove what is not the run's own from it") from error


def read_state(run_folder: Path) -> dict:
    """The state of a run. Raises InputError if there is none, or it is damaged."""
    path = run_folder / STATE_FILE
    if not path.is_file():
        raise InputError(f"no {STATE_FILE} in {run_folder}: give the folder of a run of this version that had begun")
    state = read_tensors(path, "the run cannot continue: start another")
    if not isinstance(state, dict) or not isinstance(state.get("config"), dict):
        raise InputError(f"{path} is not the state of a run: give the folder of a run of this version")
    return state


def restore(
    state: dict,
    run_folder: Path,
    model: Blip2QformerCirAlignPrompt,
    optimization: Optimization,
    world: World = ALONE,
) -> Progress:
    """Bring model, optimizer, schedule, random states and CSV files back to what they were when `state` was saved.

    Raises InputError if the frozen ViT, the model or the precision is not that of the run, if there were more or fewer
    ranks, or if the state asks to write another file than the run's.
    """
    if len(state["random"]) != world.size:
        raise InputError(
            f"{run_folder} was trained by {len(state['random'])} processes, and these are {world.size}: start as many"
        )
    optimization.load_state_dict(state["optimization"])
    if state["frozen"] != frozen_fingerprint(model):
        raise InputError(
            f"the ViT's weights, or their type, are not those that {run_folder} was trained with: give the same"
            " `weights` and kind of `device`"
        )
    own = model.state_dict()
    check_names(state["model"], {n: v for n, v in own.items() if not n.startswith(FROZEN)}, run_folder / STATE_FILE)
    model.load_state_dict(own | state["model"])
    if world.is_main:
        restore_csv_files(state["csv"], run_folder)
    set_random_state(state["random"][world.rank], model.device)
    meter = LossMeter(state["sums"][world.rank], state["count"])
    return Progress(Best(**state["best"]), state["epoch"], state["step"], meter)


def restore_csv_files(texts: dict[str, str | None], run_folder: Path) -> None:
    """Bring the CSV files of a run back: the text of each, or None if there was none yet.

    Raises InputError for any other name: a name in a state never becomes a path.
    """
    if {*texts} != {*CSV_FILES} or not all(isinstance(text, str | None) for text in texts.values()):
        raise InputError(
            f"{run_folder / STATE_FILE} holds the files {', '.join(map(repr, texts))}, and a run's are"
            f" {', '.join(CSV_FILES)}: it was not written by this project, so it is not used"
        )
    for name in CSV_FILES:
        text = texts[name]
        if text is None:
            (run_folder / name).unlink(missing_ok=True)
        else:
            write_atomically(run_folder / name, text)


def random_state(device: torch.device) -> dict:
    """The state of every generator that a run on this device draws from, in types that load without running code."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(tuple, np.random.get_state())  # a dictionary only if legacy=False
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
        "python": [version, list(words), gauss],
        "numpy": [str(name), keys.tolist(), int(position), int(has_gauss), float(cached)],
    }


def set_random_state(state: dict, device: torch.device) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"][0], device)
