"""The measurements of benchmark_speed.py, on the training loop itself."""

import argparse
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from machine import wait_for
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from upstream_way import go_upstreams_way

from lavis.models.checkpoint import load_checkpoint, save_model
from lavis.processors import BlipCaptionProcessor
from sprc.benchmarks.benchmark import Validation
from sprc.core.runtime import Runtime, choose_runtime
from sprc.data.feature_cache_build import use_feature_cache
from sprc.data.triplets import TrainingTriplets
from sprc.demo.dataset import DemoSettings, make_demo_dataset
from sprc.demo.model import random_model
from sprc.retrieval.evaluation import Evaluator
from sprc.retrieval.loading import preprocess_of
from sprc.training.config import TrainConfig
from sprc.training.run import compile_model
from sprc.training.run_state import Best, Progress
from sprc.training.samples import SampleMaker
from sprc.training.trainer import Trainer, TrainingData

MATRIX_SIDE = {"cuda": 8192, "cpu": 2048}


def measure_row(args: argparse.Namespace) -> dict:
    """The numbers of `args.row`: work a second and its unit, seconds of a step, GiB, share of the matrix throughput."""
    torch.set_num_threads(args.threads)
    runtime = choose_runtime(args.device, args.precision)
    if args.row == "upstream" and runtime.device.type == "cuda" and args.precision == "auto":
        runtime = choose_runtime(args.device, "fp16")
    batch_size = args.batch_size or (128 if runtime.device.type == "cuda" else 4)
    row = Row(args, batch_size, runtime)
    if args.row == "prepare":
        row.prepare()
        return {}
    found = {"build": row.build, "validation": row.validation}.get(args.row, row.steps)()
    precision = str(runtime.dtype).removeprefix("torch.")
    return found | {"batch": batch_size, "precision": precision, "gib": peak_gib(runtime.device)}


@dataclass(frozen=True)
class Row:
    """One row of the table; what it needs is made when it is first asked for."""

    args: argparse.Namespace
    batch_size: int
    runtime: Runtime

    @property
    def images(self) -> Path:
        return self.args.folder / f"images-{self.batch_size}-{self.args.steps}"

    @property
    def weights(self) -> Path:
        return self.args.folder / f"{self.args.backbone}.pt"

    def prepare(self) -> None:
        """Files, and the feature cache if a row reads it: making it there would count for the memory of that row."""
        self.make_files()
        sources = {"cached": self.triplets, "cached+regions": self.triplets, "validation": self.tasks}
        for use in {sources[row] for row in self.args.rows if row in sources}:
            use()

    def make_files(self) -> None:
        """Images, and random weights as a checkpoint: the frozen ViT is then read from disk when it is used."""
        images, triplets = max(12, 2 * self.batch_size), self.args.steps * self.batch_size
        few = {"test_images": 6, "test_triplets": 2}
        settings = DemoSettings(max(images, triplets), triplets, val_images=images, val_triplets=2 * images, **few)
        make_demo_dataset(self.images, settings)
        if not self.weights.is_file():
            save_model(random_model(self.args.backbone), 0, self.weights)

    @cached_property
    def config(self) -> TrainConfig:
        args, regions = self.args, self.args.row.endswith("+regions")
        cached = args.row not in ("upstream", "plain", "plain+regions")
        folder = args.folder / ("new_cache" if args.row == "build" else "cache")
        return TrainConfig(
            dataset="CIRR",
            data_path=self.images,
            backbone=args.backbone,
            box_file=self.images / "boxes" / "cirr_boxes_train.json" if regions else None,
            use_region_loss=regions,
            batch_size=self.batch_size,
            micro_batch=args.micro_batch,
            num_workers=args.num_workers,
            feature_cache=str(folder) if cached else "off",
            cache_device=args.cache_device if cached else "cpu",
        )

    @cached_property
    def model(self) -> nn.Module:
        """With the weights of the checkpoint, on its device."""
        model = random_model(self.args.backbone, "meta")
        if self.runtime.device.type == "cuda":
            model.use_half_precision_vit()
        load_checkpoint(model, self.weights)
        if self.args.row == "upstream":
            go_upstreams_way(model)
        model.region_objective, model.use_region_loss = self.config.region_objective, self.config.use_region_loss
        return model.to(self.runtime.device)

    def steps(self) -> dict:
        """The mean of `--steps` steps of the training loop, loading included, after as many that warm up."""
        training = Training(self)
        flops = training.flops_of_a_step()
        if self.args.compile:
            compile_model(self.model, images=self.config.feature_cache == "off")
        after_step = partial(wait_for, self.runtime.device) if self.args.row == "upstream" else lambda: None
        training.epoch_seconds(0, after_step)
        seconds = training.epoch_seconds(1, after_step) / self.args.steps
        if self.args.profile:
            print(f"{self.args.row}:\n{training.profile()}")
        share = flops / seconds / matrix_throughput(self.runtime)
        return {"rate": self.batch_size / seconds, "unit": "triplets", "seconds": seconds, "share": share}

    def triplets(self) -> TrainingTriplets:
        """The training triplets, from the feature cache if the row has one; it is made if it is not there."""
        triplets = self.config.benchmark.training_triplets(preprocess_of(self.config), self.config.boxes)
        use_feature_cache(self.config, self.model, self.runtime.device, triplets.images)
        return triplets

    def tasks(self) -> Validation:
        """The validation, likewise."""
        validation = self.config.benchmark.validation(preprocess_of(self.config))
        use_feature_cache(self.config, self.model, self.runtime.device, *validation.galleries)
        return validation

    def build(self) -> dict:
        """Images a second of making the feature cache."""
        shutil.rmtree(self.config.feature_cache, ignore_errors=True)
        self.model.eval()  # loaded before the clock starts
        start = time.perf_counter()
        names = self.triplets().images.names
        return {"rate": len(names) / (time.perf_counter() - start), "unit": "images"}

    def validation(self) -> dict:
        """Queries a second of a validation from the feature cache."""
        validation = self.tasks()
        evaluator = Evaluator(self.model, BlipCaptionProcessor(), self.config.scoring, self.runtime)
        queries = sum(len(task.queries) for task in validation.tasks.values())
        seconds = []
        for _ in range(2):  # the first warms up
            start = time.perf_counter()
            evaluator.evaluate(validation)
            seconds.append(time.perf_counter() - start)
        return {"rate": queries / seconds[-1], "unit": "queries"}


class Training:
    """The training loop of a row."""

    def __init__(self, row: Row):
        triplets, process, device = row.triplets(), BlipCaptionProcessor(), row.runtime.device
        make_samples = SampleMaker(list, process, triplets.images, device)
        data = TrainingData(triplets, make_samples, Validation({}, lambda metrics: {}), process)
        self.trainer, self.device = Trainer(row.model, data, row.config, row.runtime, row.args.folder), device

    def one_step(self) -> None:
        trainer = self.trainer
        trainer.gradients(trainer.data.make_samples(next(iter(trainer.loader))), trainer.config.loss_weights())
        trainer.optimization.optimizer.zero_grad(set_to_none=True)

    def flops_of_a_step(self) -> int:
        """Floating-point operations of a step's matrix products and attention."""
        with FlopCounterMode(display=False) as counter:
            self.one_step()
        return counter.get_total_flops()

    def epoch_seconds(self, epoch: int, after_step: Callable[[], None]) -> float:
        self.trainer.progress = Progress(Best("none"), epoch)
        start = time.perf_counter()
        self.trainer.train_epoch(after_step)
        wait_for(self.device)
        return time.perf_counter() - start

    def profile(self) -> str:
        """What a step spends its time on."""
        with torch.profiler.profile() as profiler:
            self.one_step()
            wait_for(self.device)
        key = f"self_{self.device.type}_time_total"
        return profiler.key_averages().table(sort_by=key, row_limit=15, max_name_column_width=60)


def matrix_throughput(runtime: Runtime) -> float:
    """Floating-point operations a second of a large matrix product in the runtime's type: what this device can do."""
    side = MATRIX_SIDE[runtime.device.type]
    left, right = torch.randn(2, side, side, device=runtime.device, dtype=runtime.dtype)
    seconds = []
    for _ in range(7):
        wait_for(runtime.device)
        start = time.perf_counter()
        left @ right
        wait_for(runtime.device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds[2:])


def peak_gib(device: torch.device) -> float:
    """The most memory that was held: of the device, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
