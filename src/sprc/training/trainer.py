"""The trainer: it owns what lasts over a run. It knows no benchmark and no loss by name."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from tqdm import tqdm

from lavis.models import Blip2QformerCirAlignPrompt
from lavis.models.checkpoint import save_model
from sprc.benchmarks.benchmark import Metrics, Validation
from sprc.core.files import append_csv
from sprc.core.machine_faults import naming_place
from sprc.core.process_group import World
from sprc.core.runtime import Runtime
from sprc.core.stop_signals import StopSignals
from sprc.data.triplets import Triplets
from sprc.retrieval.evaluation import Evaluator
from sprc.training.config import LAST_FILE, TrainConfig
from sprc.training.gradients import Gradients
from sprc.training.loss_watch import LossWatch
from sprc.training.optimization import Optimization
from sprc.training.run_state import Best, LossMeter, Progress, restore, save_state
from sprc.training.sampling import EpochSampler, derived_seed, make_train_loader
from sprc.training.saver import Saver

logger = logging.getLogger(__name__)

# Reading a loss waits for the GPU: the bar, and the check of loss and temperature, come once in so many steps.
STEPS_PER_REPORT = 20


@dataclass(frozen=True)
class TrainingData:
    """What a training learns from, and is measured on.

    `make_samples` maps a batch of the triplets to the model's `samples`; numbers under `statistics` in them are
    averaged and reported beside the losses. `process_caption` prepares the sentences of the validation.
    """

    triplets: Triplets
    make_samples: Callable[[dict], dict]
    validation: Validation
    process_caption: Callable[[str], str]


class Trainer:
    """A run in its folder.

    Args:
        model: its `embed`, `losses` and `extract_*` functions are called; its ViT is frozen.
        data: triplets and validation.
        config: the run's settings.
        runtime: device, precision and ranks.
        run_folder: takes the CSV files, the state and the checkpoints.
        state: what `read_state` has found of a run that continues.
    """

    def __init__(
        self,
        model: Blip2QformerCirAlignPrompt,
        data: TrainingData,
        config: TrainConfig,
        runtime: Runtime,
        run_folder: Path,
        state: dict | None = None,
    ):
        self.model, self.data, self.config, self.runtime, self.run_folder = model, data, config, runtime, run_folder
        self.loader = make_train_loader(data.triplets, config, runtime.device, self.world)
        self.optimization = Optimization(model, config, len(self.loader), runtime)
        self.progress = Progress(Best(config.preset.monitor))
        if state is not None:
            self.progress = restore(state, run_folder, model, self.optimization, self.world)
            self._say_the_plan()
        scale = self.optimization.scaler.scale
        self.gradients = Gradients(model, runtime.autocast, scale, config.micro_batch, self.world)
        self.evaluator = Evaluator(model, data.process_caption, config.scoring, runtime)
        self.watch, self.signals = LossWatch(model, run_folder, self.world), StopSignals()
        self.saver = Saver(run_folder, config.save_every, self.signals, self.world, self.save)

    @property
    def world(self) -> World:
        return self.runtime.world

    def fit(self) -> Best:
        """Train for the planned epochs and validate; metrics go to CSV files, checkpoints are kept as asked for.

        Raises `Stopped` if a signal asks for it, and InputError if the training cannot continue.
        """
        with self.signals:
            while self.progress.epoch < self.config.plan.num_epochs:
                if self.progress.step < len(self.loader):
                    self.train_epoch(self.saver.after_step)
                    if self.saver.since:
                        self.saver.save()
                self._finish_epoch()
                self.progress.next_epoch()
            self.saver.save()
        return self.progress.best

    def train_epoch(self, after_step: Callable[[], None] = lambda: None) -> dict[str, float]:
        """The rest of the epoch -> the mean of every loss over all of it.

        `after_step` is called each time `progress` says what has been done. Raises InputError as `fit`.
        """
        epoch, first, length = self.progress.epoch, self.progress.step, len(self.loader)
        sampler = cast(EpochSampler, self.loader.sampler)
        sampler.epoch, sampler.start = epoch, first
        if first == 0:
            torch.manual_seed(derived_seed(self.config.seed, epoch, self.world.rank))
        self.model.train()
        start = time.perf_counter()
        with tqdm(self.loader, desc=f"epoch {epoch}", initial=first, total=length, dynamic_ncols=True) as bar:
            for step, batch in enumerate(bar, start=first):
                self.train_step(step, batch)
                if step % STEPS_PER_REPORT == 0 or step == length - 1:
                    self.watch.check(epoch)
                    images = (step + 1 - first) * self.config.batch_size * self.world.size * 2  # a triplet has two
                    bar.set_postfix(self._bar_numbers(images / (time.perf_counter() - start)))
                after_step()
        if skipped := self.optimization.skipped_steps:
            logger.info("%d steps so far were skipped: gradients beyond fp16", skipped)
        return self.progress.meter.means()

    def train_step(self, step: int, batch: dict) -> None:
        """One step of the epoch: gradients, optimizer, and what is noted of it."""
        samples = self.data.make_samples(batch)
        progress = self.config.progress_at(self.progress.epoch + step / len(self.loader))
        self.model.region_bias = self.config.region_bias_at(progress)
        losses = self.gradients(samples, self.config.loss_weights(progress))
        self.optimization.step()
        self.progress.meter.add(losses | samples.get("statistics", {}))
        self.watch.add(step, losses, batch)
        self.progress.step = step + 1

    def evaluate(self) -> Metrics:
        """The metrics of the validation, in percent; the same on every rank."""
        return self.evaluator.evaluate(self.data.validation)

    def save(self) -> None:
        """Write the run's state, unless a weight is no number: the last good state stays then."""
        self.watch.check_weights(self.progress.epoch)
        save_state(self.run_folder, self.model, self.optimization, self.progress, self.config, self.world)

    def _finish_epoch(self) -> None:
        """Write an epoch's row, validate, save the models that are asked for: all can be done again from the state."""
        epoch = self.progress.epoch
        means = mean_of_ranks(self.progress.meter, self.world)
        self._append("train_metrics.csv", means)
        if self.config.save_training:
            self._save_model(LAST_FILE)
        logger.info("epoch %d: %s, temp %.5f", epoch, _short(means), self.model.temp.item())
        if epoch % self.config.validation_frequency:
            return
        with self.signals.at_once(), naming_place(f"validation of epoch {epoch}"):
            metrics = self.evaluate()
        self._append("validation_metrics.csv", metrics)
        logger.info("epoch %d: %s", epoch, _short(metrics))
        if self.progress.best.update(epoch, metrics) and self.config.save_best:
            self._save_model(self.config.preset.best_file)

    def _append(self, name: str, row: dict[str, float]) -> None:
        """Append one row, so that the file is whole at any moment; the header comes with the first."""
        if self.world.is_main:
            row = {"epoch": self.progress.epoch} | row
            append_csv(self.run_folder / name, list(row), [row])

    def _save_model(self, name: str) -> None:
        if self.world.is_main:
            save_model(self.model, self.progress.epoch, self.run_folder / "saved_models" / name)

    def _bar_numbers(self, images_a_second: float) -> dict[str, str]:
        """What stands after the bar."""
        shown = {name: f"{mean:.3f}" for name, mean in self.progress.meter.means().items()}
        rate, temperature = self.optimization.learning_rate, self.model.temp.item()
        return shown | {"lr": f"{rate:.1e}", "temp": f"{temperature:.4f}", "img/s": f"{images_a_second:.0f}"}

    def _say_the_plan(self) -> None:
        """Tell what a run trains with that continues for another number of epochs than it began with."""
        config, epochs = self.config, self.config.plan.num_epochs
        rated, begun = config.schedule()["epochs"], config.begun_epochs
        if epochs > rated:
            rate = self.optimization.optimizer.param_groups[0]["min_lr"]
            logger.info(
                f"note: this run planned its learning rate for {rated} epochs. After them it stays at {rate:.1e}, with"
                f" which little changes; `schedule_epochs` {epochs} makes a new plan"
            )
        if epochs != begun and config.use_region_loss:
            end = config.loss_weights(config.progress_at(epochs))["loss_region"]
            logger.info(
                f"note: the region weight keeps to the {begun} epochs that this run began with; it ends at {end:g}"
            )


def mean_of_ranks(meter: LossMeter, world: World) -> dict[str, float]:
    """Losses are the same on every rank; numbers of its own batches are not."""
    own = meter.means()
    ranks = world.collect(own)
    return {name: math.fsum(of_rank[name] for of_rank in ranks) / world.size for name in own}


def _short(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
