"""Training and evaluation. This loop knows no model and no dataset by name: losses, weights and metrics have names."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from tqdm import tqdm

from data_utils import collate_fn
from lavis.models.checkpoint import save_model
from sprc.benchmarks.ranking import gallery_scores
from sprc.benchmarks.retrieval_task import RetrievalTask, Validation
from sprc.core.errors import InputError
from sprc.core.files import append_csv
from sprc.core.machine_faults import naming
from sprc.core.process_group import World
from sprc.core.runtime import PRECISIONS, Runtime
from sprc.core.stop_signals import StopSignals
from sprc.data.loader_workers import prepare_worker
from sprc.training.config import LAST_FILE, TrainConfig, save_interval
from sprc.training.gradients import Gradients
from sprc.training.loss_watch import LossWatch
from sprc.training.run_state import Best, Progress, restore, save_state

# Reading a loss waits for the GPU: the bar, and the check of loss and temperature, come once in so many steps.
STEPS_PER_REPORT = 20


def derived_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """A seed for one epoch of one process: the same wherever and however often that epoch is run."""
    parts = [seed, epoch, rank] if rank else [seed, epoch]
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class EpochSampler(Sampler[int]):
    """This rank's part of a shuffled order that depends on (seed, epoch) alone, not on workers or on what ran before.

    A step takes `batch_size` triplets for every rank, in the order of ranks; those that make no whole step are left
    out, as upstream does. `start` steps are done.
    """

    def __init__(self, length: int, batch_size: int, seed: int, world: World):
        self.length, self.batch_size, self.seed, self.world = length, batch_size, seed, world
        self.epoch, self.start = 0, 0

    @property
    def steps(self) -> int:
        return self.length // (self.batch_size * self.world.size)

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator)
        whole = order[: len(self) * self.world.size].view(self.steps, self.world.size, self.batch_size)
        return iter(whole[self.start :, self.world.rank].flatten().tolist())


def make_loader(dataset: Dataset, batch_size: int, num_workers: int, device: torch.device, **options) -> DataLoader:
    """A loader with the project's collate function; its own generator keeps torch's global random state untouched."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        collate_fn=collate_fn,
        generator=torch.Generator().manual_seed(0),
        persistent_workers=num_workers > 0,
        worker_init_fn=prepare_worker,
        **options,
    )


def make_train_loader(dataset: Dataset, config: TrainConfig, device: torch.device, world: World) -> DataLoader:
    """Shuffled whole batches. Raises InputError where there is none for every rank."""
    needed = config.batch_size * world.size
    if len(dataset) < needed:
        ranks = f" on each of {world.size} ranks" if world.size > 1 else ""
        raise InputError(f"--batch-size {config.batch_size}{ranks} is more than the {len(dataset)} triplets: lower it")
    sampler = EpochSampler(len(dataset), config.batch_size, config.seed, world)
    return make_loader(dataset, config.batch_size, config.num_workers, device, sampler=sampler, drop_last=True)


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int) -> OneCycleLR:
    """Upstream's OneCycleLR. Its rise must not be one step exactly, for it divides by the steps of the rise less one:
    such a rise is made shorter by a hair, and the first step has the peak.
    """
    plan = config.schedule()
    if plan["pct_start"] * (plan["epochs"] * steps_per_epoch) == 1:
        plan["pct_start"] *= 1 - 1e-9
    return OneCycleLR(optimizer, max_lr=config.learning_rate, steps_per_epoch=steps_per_epoch, **plan)


class Optimization:
    """Upstream's AdamW and OneCycleLR, one step a batch, with the gradient scaling that fp16 needs."""

    def __init__(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int, runtime: Runtime):
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trainable, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-7, weight_decay=0.05, fused=True
        )
        self.scheduler = make_schedule(self.optimizer, config, steps_per_epoch)
        self.steps = 0
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype is torch.float16)
        self.precision = next(name for name, dtype in PRECISIONS.items() if dtype is runtime.dtype)

    @property
    def learning_rate(self) -> float:
        return self.scheduler.get_last_lr()[0]

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
        """Take over what `state_dict` gave; the schedule keeps its own length, which `--schedule-epochs` may change.

        Raises InputError where that was in another precision, as `auto` can be on another GPU.
        """
        if state["precision"] != self.precision:
            raise InputError(
                f"the run computes in {state['precision']}, and here --precision is {self.precision}: go on with"
                f" --precision {state['precision']}, on a device that has it"
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


def train_one_epoch(
    gradients: Gradients,
    loader: DataLoader,
    make_samples: Callable[[list], dict],
    optimization: Optimization,
    config: TrainConfig,
    progress: Progress,
    watch: LossWatch,
    after_step: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The rest of an epoch -> the mean of every loss over all of it.

    `make_samples` maps a batch of the loader to the model's `samples`; numbers under `statistics` in them are averaged
    and reported beside the losses. `after_step` is called whenever `progress` says what has been done.
    Raises InputError where the training cannot go on.
    """
    model, world = gradients.model, gradients.world
    epoch, first, meter = progress.epoch, progress.step, progress.meter
    loader.sampler.epoch, loader.sampler.start = epoch, first
    if first == 0:
        torch.manual_seed(derived_seed(config.seed, epoch, world.rank))
    model.train()
    start, length = time.perf_counter(), len(loader)
    with tqdm(loader, desc=f"epoch {epoch}", initial=first, total=length, dynamic_ncols=True) as bar:
        for step, batch in enumerate(bar, start=first):
            samples = make_samples(batch)
            losses = gradients(samples, config.loss_weights(config.progress_at(epoch + step / length)))
            optimization.step()
            meter.add(losses | samples.get("statistics", {}))
            watch.add(step, losses, batch)
            progress.step = step + 1
            if step % STEPS_PER_REPORT == 0 or step == length - 1:
                watch.check(epoch)
                images = (step + 1 - first) * loader.batch_size * world.size * 2  # a triplet has two
                speed = images / (time.perf_counter() - start)
                bar.set_postfix(bar_numbers(meter.means(), model, optimization.learning_rate, speed))
            after_step()
    if skipped := optimization.skipped_steps:
        print(f"{skipped} steps so far were skipped: gradients beyond fp16", flush=True)
    return meter.means()


def bar_numbers(means: dict[str, float], model: nn.Module, learning_rate: float, speed: float) -> dict[str, str]:
    """What stands behind the bar."""
    shown = {name: f"{mean:.3f}" for name, mean in means.items()}
    return shown | {"lr": f"{learning_rate:.1e}", "temp": f"{model.temp.item():.4f}", "img/s": f"{speed:.0f}"}


@torch.no_grad()
def score_queries(model: nn.Module, task: RetrievalTask, config: TrainConfig, runtime: Runtime) -> Tensor:
    """Scores (Q, N) of every query against every gallery image, float32, on the CPU; on rank 0, (0, N) elsewhere.

    The gallery passes once, and a query is encoded as its reference passes: nothing larger than a batch of raw image
    tokens is ever kept. Every rank encodes its share of the gallery.
    """
    model.eval()
    at_once = min(config.batch_size, config.micro_batch or config.batch_size)
    rank, size = runtime.world.rank, runtime.world.size
    queries_of = defaultdict(list)
    for query, name in enumerate(task.reference_names):
        queries_of[name].append(query)
    keep_on = torch.device("cpu") if config.save_memory else runtime.device
    share = Subset(task.gallery, range(rank, len(task.gallery), size))
    loader = make_loader(share, at_once, config.num_workers, runtime.device)
    targets, query_features = [], {}
    with runtime.autocast(runtime.scoring):
        for names, images in tqdm(loader, desc="gallery", dynamic_ncols=True, leave=False):
            features, image_embeds = model.extract_target_features(task.gallery.on_device(images, runtime.device))
            targets.append(features.to(keep_on))
            query_features |= _encode_queries(model, task, queries_of, names, image_embeds, at_once)
    numbers, queries = torch.tensor(list(query_features), dtype=torch.long), list(query_features.values())
    no_rows = _no_rows(model, runtime.device)  # of this rank, if its share is empty or holds no query's reference
    places = torch.tensor(share.indices, dtype=torch.long)  # without the type those of no image would be floats
    columns = _in_order(torch.cat([no_rows.to(keep_on), *targets]), places, runtime.world)  # (N, Q, E)
    queries = _in_order(torch.stack(queries) if queries else no_rows[:, 0], numbers, runtime.world)
    return gallery_scores(queries if runtime.world.is_main else queries[:0], columns, config.memory_mib)


def _no_rows(model: nn.Module, device: torch.device) -> Tensor:
    """(0, Q, E): the target tokens of no image."""
    return torch.zeros(0, model.config.qformer.num_query_token, model.config.embed_dim, device=device)


def _in_order(rows: Tensor, numbers: Tensor, world: World) -> Tensor:
    """All ranks' rows in the order of their numbers, which are 0, 1, 2 ... over all ranks."""
    return world.gather(rows)[world.gather(numbers).argsort().to(rows.device)]


def _encode_queries(
    model: nn.Module, task: RetrievalTask, queries_of: dict, names: list[str], image_embeds: Tensor, batch_size: int
) -> dict[int, Tensor]:
    """The features (E,) of all queries whose reference is in this batch of the gallery."""
    pairs = [(query, row) for row, name in enumerate(names) for query in queries_of.get(name, ())]
    features = {}
    for first in range(0, len(pairs), batch_size):
        queries, rows = zip(*pairs[first : first + batch_size], strict=True)
        encoded = model.extract_query_features(image_embeds[list(rows)], [task.captions[q] for q in queries])
        features |= dict(zip(queries, encoded, strict=True))
    return features


def evaluate(model: nn.Module, validation: Validation, config: TrainConfig, runtime: Runtime) -> dict[str, float]:
    """The metrics of a validation, in percent, task by task; the same on every rank."""
    metrics = {}
    for name, task in validation.tasks.items():
        scores = score_queries(model, task, config, runtime)
        metrics[name] = task.metrics(scores) if runtime.world.is_main else {}
    return runtime.world.share(validation.summary(metrics) if runtime.world.is_main else {})


class Saver:
    """Saves the state of a run behind each epoch's steps, among them as `--save-every` says, and for a signal."""

    def __init__(
        self, run_folder: Path, config: TrainConfig, signals: StopSignals, world: World, write: Callable[[], None]
    ):
        self.run_folder, self.signals, self.world, self.write = run_folder, signals, world, write
        self.steps, self.seconds = save_interval(config.save_every)
        self.since, self.last = 0, time.monotonic()

    def after_step(self) -> None:
        """Every rank saves where one has a reason to: ranks hear of a signal, and count minutes, at different times."""
        self.since += 1
        due = (self.steps and self.since >= self.steps) or (
            self.seconds and time.monotonic() - self.last >= self.seconds
        )
        due, number = self.world.largest(bool(due), self.signals.number or 0)
        self.signals.number = number or None
        if due or number:
            self.save()

    def save(self) -> None:
        """Save, and then stop where a signal has asked for it."""
        self.write()
        self.since, self.last = 0, time.monotonic()
        self.signals.raise_if_asked(f"saved; go on with --resume {self.run_folder}")


def fit(
    model: nn.Module,
    train_set: Dataset,
    make_samples: Callable[[list], dict],
    validation: Validation,
    config: TrainConfig,
    runtime: Runtime,
    run_folder: Path,
    state: dict | None = None,
) -> Best:
    """Train for `config.num_epochs` and validate; metrics go to CSV files in `run_folder`, checkpoints as asked for.

    `state` is what `read_state` has found of a run that goes on. Raises `Stopped` where a signal asks.
    """
    world = runtime.world
    loader = make_train_loader(train_set, config, runtime.device, world)
    optimization = Optimization(model, config, len(loader), runtime)
    progress = Progress(Best(config.preset.monitor))
    if state is not None:
        progress = restore(state, run_folder, model, optimization, world)
        say_the_plan(config, optimization)
    gradients = Gradients(model, runtime.autocast, optimization.scaler.scale, config.micro_batch, world)
    watch = LossWatch(model, run_folder, world)
    with StopSignals() as signals:

        def write() -> None:
            watch.check_weights(progress.epoch)
            save_state(run_folder, model, optimization, progress, config, world)

        saver = Saver(run_folder, config, signals, world, write)
        while progress.epoch < config.num_epochs:
            if progress.step < len(loader):
                train_one_epoch(
                    gradients, loader, make_samples, optimization, config, progress, watch, saver.after_step
                )
                if saver.since:
                    saver.save()
            finish_epoch(model, validation, config, runtime, run_folder, progress, signals)
            progress.next_epoch()
        saver.save()
    return progress.best


def say_the_plan(config: TrainConfig, optimization: Optimization) -> None:
    """Print what a run trains with that continues for another number of epochs than it began with."""
    rated, begun = config.schedule()["epochs"], config.planned_epochs
    if config.num_epochs > rated:
        rate = optimization.optimizer.param_groups[0]["min_lr"]
        print(
            f"note: this run planned its learning rate for {rated} epochs. After them it stays at {rate:.1e}, with"
            f" which little changes; --schedule-epochs {config.num_epochs} makes a new plan",
            flush=True,
        )
    if config.num_epochs != begun and config.use_region_loss:
        end = config.loss_weights(config.progress_at(config.num_epochs))["loss_region"]
        print(f"note: the region weight keeps to the {begun} epochs that this run began with; it ends at {end:g}")


def finish_epoch(
    model: nn.Module,
    validation: Validation,
    config: TrainConfig,
    runtime: Runtime,
    run_folder: Path,
    progress: Progress,
    signals: StopSignals,
) -> None:
    """Write an epoch's row, validate, and save the models that are asked for: all can be done again from the state."""
    epoch, saved, is_main = progress.epoch, run_folder / "saved_models", runtime.world.is_main
    means = mean_of_ranks(progress.meter.means(), runtime.world)
    if is_main:
        append_row(run_folder / "train_metrics.csv", {"epoch": epoch, **means})
        if config.save_training:
            save_model(model, epoch, saved / LAST_FILE)
    print(f"epoch {epoch}: {_short(means)}, temp {model.temp.item():.5f}", flush=True)
    if epoch % config.validation_frequency:
        return
    with signals.at_once(), naming(f"validation of epoch {epoch}"):
        metrics = evaluate(model, validation, config, runtime)
    if is_main:
        append_row(run_folder / "validation_metrics.csv", {"epoch": epoch, **metrics})
    print(f"epoch {epoch}: {_short(metrics)}", flush=True)
    if progress.best.update(epoch, metrics) and config.save_best and is_main:
        save_model(model, epoch, saved / config.preset.best_file)


def mean_of_ranks(values: dict[str, float], world: World) -> dict[str, float]:
    """Losses are the same on every rank; numbers of its own batches are not."""
    ranks = world.collect(values)
    return {name: math.fsum(of_rank[name] for of_rank in ranks) / world.size for name in values}


def _short(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def append_row(path: Path, row: dict[str, float]) -> None:
    """Append one row, so that the file is whole at any moment; the header comes with the first."""
    append_csv(path, list(row), [row])
