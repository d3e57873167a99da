"""Training and evaluation. This loop knows no model and no dataset by name: losses, weights and metrics have names."""

import csv
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from data_utils import collate_fn
from lavis.common.errors import InputError
from lavis.models.checkpoint import save_model
from retrieval_task import RetrievalTask, Validation
from train_config import LAST_FILE, TrainConfig
from validate_blip import gallery_scores

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# Reading a loss waits for the GPU: the bar, and the check of loss and temperature, come once in so many steps.
STEPS_PER_REPORT = 20


@dataclass(frozen=True)
class Runtime:
    """Where and how numbers are computed: a device, and the type that autocast uses (float32 switches it off)."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32)


def choose_runtime(device: str = "auto", precision: str = "auto") -> Runtime:
    """`auto` takes CUDA where there is one, and fp16 on it. Raises InputError for what this machine cannot do."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {device!r} is not a device: use auto, cpu, cuda or cuda:N") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {device}: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices")
    precision = ("fp16" if chosen.type == "cuda" else "fp32") if precision == "auto" else precision
    if precision not in PRECISIONS:
        raise InputError(f"--precision {precision!r} is unknown: use auto, {', '.join(PRECISIONS)}")
    if chosen.type == "cpu" and precision != "fp32":
        raise InputError(f"--precision {precision} needs a CUDA device; on the CPU use fp32")
    return Runtime(chosen, PRECISIONS[precision])


def derived_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch: the same wherever and however often that epoch is run."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


class EpochSampler(Sampler[int]):
    """A shuffled order that depends on (seed, epoch) alone, not on workers or on what ran before."""

    def __init__(self, length: int, seed: int):
        self.length, self.seed, self.epoch = length, seed, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        return iter(torch.randperm(self.length, generator=generator).tolist())


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
        **options,
    )


def make_train_loader(dataset: Dataset, config: TrainConfig, device: torch.device) -> DataLoader:
    """Shuffled, without the incomplete last batch, as upstream. Raises InputError where there is no whole batch."""
    if len(dataset) < config.batch_size:
        raise InputError(f"--batch-size {config.batch_size} is more than the {len(dataset)} triplets: lower it")
    sampler = EpochSampler(len(dataset), config.seed)
    return make_loader(dataset, config.batch_size, config.num_workers, device, sampler=sampler, drop_last=True)


def total_loss(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The weighted sum. Raises KeyError where a loss and a weight do not share a name."""
    if losses.keys() != weights.keys():
        raise KeyError(f"losses {sorted(losses)} and weights {sorted(weights)} must have the same names")
    return sum(weights[name] * loss for name, loss in losses.items())


class Optimization:
    """Upstream's AdamW and OneCycleLR, one step a batch, with the gradient scaling that fp16 needs."""

    def __init__(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int, runtime: Runtime):
        self.trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trainable, lr=config.learning_rate, betas=(0.9, 0.98), eps=1e-7, weight_decay=0.05
        )
        self.scheduler = OneCycleLR(
            self.optimizer,
            max_lr=config.learning_rate,
            steps_per_epoch=steps_per_epoch,
            **config.preset.schedule(config.num_epochs),
        )
        self.scaler = torch.amp.GradScaler(runtime.device.type, enabled=runtime.dtype is torch.float16)

    @property
    def learning_rate(self) -> float:
        return self.scheduler.get_last_lr()[0]

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()


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


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    make_samples: Callable[[list], dict],
    optimization: Optimization,
    config: TrainConfig,
    runtime: Runtime,
    epoch: int,
) -> dict[str, float]:
    """One pass over the loader -> the mean of every loss. Raises InputError where the training cannot go on.

    `make_samples` maps a batch of the loader to the model's `samples`; numbers under `statistics` in them are averaged
    and reported beside the losses.
    """
    loader.sampler.epoch = epoch
    torch.manual_seed(derived_seed(config.seed, epoch))
    model.train()
    meter, start = LossMeter(), time.perf_counter()
    with tqdm(loader, desc=f"epoch {epoch}", dynamic_ncols=True) as bar:
        for step, batch in enumerate(bar):
            samples = make_samples(batch)
            with runtime.autocast():
                losses = model(samples)
            progress = (epoch + step / len(loader)) / config.num_epochs
            optimization.step(total_loss(losses, config.loss_weights(progress)))
            meter.add(losses | samples.get("statistics", {}))
            if step % STEPS_PER_REPORT == 0 or step == len(loader) - 1:
                means = meter.means()
                check_health(model, means, epoch, step)
                speed = (step + 1) * loader.batch_size * 2 / (time.perf_counter() - start)  # a triplet has two images
                bar.set_postfix(bar_numbers(means, model, optimization.learning_rate, speed))
    return meter.means()


def bar_numbers(means: dict[str, float], model: nn.Module, learning_rate: float, speed: float) -> dict[str, str]:
    """What stands behind the bar."""
    shown = {name: f"{mean:.3f}" for name, mean in means.items()}
    return shown | {"lr": f"{learning_rate:.1e}", "temp": f"{model.temp.item():.4f}", "img/s": f"{speed:.0f}"}


def check_health(model: nn.Module, means: dict[str, float], epoch: int, step: int) -> None:
    """Stop where nothing good can follow: a loss that is no number, or a temperature that is no longer above 0."""
    where = f"epoch {epoch}, step {step}"
    broken = [name for name, mean in means.items() if not math.isfinite(mean)]
    if broken:
        raise InputError(
            f"{', '.join(broken)} became NaN or infinite by {where}: lower --learning-rate, or use --precision bf16;"
            " what was saved before stays as it is"
        )
    if not model.temp.item() > 0:
        raise InputError(
            f"the temperature fell to {model.temp.item():.4g} by {where}, and scores are divided by it: lower"
            " --learning-rate or train for fewer epochs; what was saved before stays as it is"
        )


@torch.no_grad()
def score_queries(model: nn.Module, task: RetrievalTask, config: TrainConfig, runtime: Runtime) -> Tensor:
    """Scores (Q, N) of every query against every gallery image, float32, on the CPU.

    The gallery passes once, and a query is encoded as its reference passes: nothing larger than a batch of raw image
    tokens is ever kept.
    """
    model.eval()
    queries_of = defaultdict(list)
    for query, name in enumerate(task.reference_names):
        queries_of[name].append(query)
    keep_on = torch.device("cpu") if config.save_memory else runtime.device
    loader = make_loader(task.gallery, config.batch_size, config.num_workers, runtime.device)
    targets, query_features = [], {}
    with runtime.autocast():
        for names, images in tqdm(loader, desc="gallery", dynamic_ncols=True, leave=False):
            features, image_embeds = model.extract_target_features(images.to(runtime.device, non_blocking=True))
            targets.append(features.to(keep_on))
            query_features |= _encode_queries(model, task, queries_of, names, image_embeds, config.batch_size)
    queries = torch.stack([query_features[query] for query in range(len(task.captions))])  # (Q, E)
    return gallery_scores(queries, torch.cat(targets), config.memory_mib)


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
    """The metrics of a validation, in percent, task by task."""
    tasks = validation.tasks.items()
    return validation.summary({n: task.metrics(score_queries(model, task, config, runtime)) for n, task in tasks})


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


def fit(
    model: nn.Module,
    train_set: Dataset,
    make_samples: Callable[[list], dict],
    validation: Validation,
    config: TrainConfig,
    runtime: Runtime,
    run_folder: Path,
) -> Best:
    """Train for `config.num_epochs` and validate; metrics go to CSV files in `run_folder`, checkpoints as asked for."""
    loader = make_train_loader(train_set, config, runtime.device)
    optimization = Optimization(model, config, len(loader), runtime)
    best = Best(config.preset.monitor)
    saved = run_folder / "saved_models"
    for epoch in range(config.num_epochs):
        means = train_one_epoch(model, loader, make_samples, optimization, config, runtime, epoch)
        append_csv(run_folder / "train_metrics.csv", {"epoch": epoch, **means})
        if config.save_training:
            save_model(model, epoch, saved / LAST_FILE)
        print(f"epoch {epoch}: {_short(means)}, temp {model.temp.item():.5f}", flush=True)
        if epoch % config.validation_frequency:
            continue
        metrics = evaluate(model, validation, config, runtime)
        append_csv(run_folder / "validation_metrics.csv", {"epoch": epoch, **metrics})
        print(f"epoch {epoch}: {_short(metrics)}", flush=True)
        if best.update(epoch, metrics) and config.save_best:
            save_model(model, epoch, saved / config.preset.best_file)
    return best


def _short(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def append_csv(path: Path, row: dict[str, float]) -> None:
    """Append one row; the header comes with the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)
