"""A run from its configuration: data, model, trainer, and the folder that it leaves."""

import json
import logging
import platform
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from torch.utils.data import Subset

from lavis.models import Blip2QformerCirAlignPrompt, load_model_and_preprocess
from sprc.benchmarks.benchmark import Validation
from sprc.core.files import unwritable, write_atomically
from sprc.core.locks import held
from sprc.core.machine_faults import explained, training_memory_fix
from sprc.core.process_group import join_world, leave_world
from sprc.core.runtime import Runtime, choose_runtime
from sprc.data.feature_cache_build import use_feature_cache
from sprc.data.image_check import check_images
from sprc.data.options import CACHE_OFF
from sprc.data.triplets import TrainingTriplets
from sprc.retrieval.backbone_copy import keep_backbone
from sprc.retrieval.checkpoint_run import SETTINGS_FILE
from sprc.retrieval.loading import preprocess_of
from sprc.training.config import LAST_FILE, TrainConfig
from sprc.training.run_inputs import input_fingerprints
from sprc.training.run_state import Best, read_state
from sprc.training.samples import SampleMaker
from sprc.training.sampling import derived_seed
from sprc.training.trainer import Trainer, TrainingData

logger = logging.getLogger(__name__)


def run_training(config: TrainConfig, resumed: Path | None = None) -> tuple[Best, Path]:
    """Build everything and train -> the best epoch, and the run's folder; `resumed` is that of a run that continues.

    Data is checked before the model is loaded. Raises InputError for bad input and for what the machine cannot do.
    """
    with explained(training_memory_fix(config.batch_size, config.micro_batch, config.feature_cache != CACHE_OFF)):
        return _Run(config, resumed).train()


class _Run:
    """The parts of a run, in the order in which they are made: what is cheap to find wrong comes first."""

    def __init__(self, config: TrainConfig, resumed: Path | None):
        self.config, self.resumed = config, resumed
        self.state = None if resumed is None else read_state(resumed)
        runtime = choose_runtime(config.device, config.precision)
        self.runtime: Runtime = replace(runtime, world=join_world(runtime.device))
        preprocess = preprocess_of(config)
        self.triplets: TrainingTriplets = config.benchmark.training_triplets(preprocess, config.boxes)
        self.validation: Validation = config.benchmark.validation(preprocess)

    def train(self) -> tuple[Best, Path]:
        world = self.runtime.world
        check_images(self.triplets.images, *self.validation.galleries)
        model, process = self._load_model()
        folder = world.share((self.resumed or make_run_folder(self.config)) if world.is_main else None)
        with held(folder) if world.is_main else nullcontext():
            best = self._train_in(folder, model, process)
        leave_world()
        return best, folder

    def _load_model(self) -> tuple[Blip2QformerCirAlignPrompt, dict[str, Any]]:
        """The model with its weights, and the processors of captions."""
        config = self.config
        torch.manual_seed(derived_seed(config.seed, 2**31))  # random initial weights are no epoch's
        with self.runtime.world.main_first():
            model, _, process = load_model_and_preprocess(
                config.blip_model_name,
                config.backbone,
                device=self.runtime.device,
                weights=config.weights,
                drop_region_proj=config.drop_region_proj,
                use_region_loss=config.use_region_loss,
                region_objective=config.region_objective,
            )
        return model, process

    def _train_in(self, folder: Path, model: Blip2QformerCirAlignPrompt, process: dict[str, Any]) -> Best:
        """Train in a folder that this run alone holds: from here on files are written."""
        config, runtime = self.config, self.runtime
        if runtime.world.is_main:
            keep_backbone(config.backbone, folder)
            write_hyperparameters(config, runtime, folder)
        logger.info("%d triplets; %s; %s; run %s", len(self.triplets), self.validation, runtime.device, folder)
        galleries = self.validation.galleries
        use_feature_cache(config, model, runtime.device, self.triplets.images, *galleries, world=runtime.world)
        if config.compile:
            compile_model(model, images=config.feature_cache == CACHE_OFF)
        return Trainer(model, self._data(process), config, runtime, folder, self.state).fit()

    def _data(self, process: dict[str, Any]) -> TrainingData:
        triplets, most = self.triplets, self.config.max_triplets
        bounded = triplets if most is None else Subset(triplets, range(min(most, len(triplets))))
        sentences = self.config.benchmark.training_sentences
        make_samples = SampleMaker(sentences, process["train"], triplets.images, self.runtime.device)
        return TrainingData(bounded, make_samples, self.validation, process["eval"])


def compile_model(model: Blip2QformerCirAlignPrompt, images: bool, **options) -> None:
    """Compile the Q-Former and, if it has images to encode, the ViT; in place, so that names stay as they are.

    The ViT block by block: they are alike, so that one compilation serves all. `options` are `torch.compile`'s.
    """
    model.Qformer.model.compile(**options)
    for block in model.visual_encoder.blocks if images else ():
        block.compile(**options)


def make_run_folder(config: TrainConfig) -> Path:
    """`<output>/clip_finetuned_on_<tag>_<model>_<time>`, new: a second run within the second gets a number."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    name = f"clip_finetuned_on_{config.preset.tag}_{config.blip_model_name}_{stamp}"
    for attempt in range(1000):
        folder = config.output_folder / (name if attempt == 0 else f"{name}_{attempt}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise unwritable(folder, error) from error
    raise FileExistsError(f"{config.output_folder / name} and 999 folders after it exist")


def write_hyperparameters(config: TrainConfig, runtime: Runtime, run_folder: Path) -> None:
    """What the run was trained with, and on what; `config_file.read_settings` reads it back."""
    versions = {m.__name__: m.__version__ for m in (torch, timm, transformers)} | {"python": platform.python_version()}
    settings = config.settings() | {"ran_on": str(runtime.device), "dtype": str(runtime.dtype), "versions": versions}
    settings |= {"processes": runtime.world.size, "inputs": input_fingerprints(config)}
    write_atomically(run_folder / SETTINGS_FILE, json.dumps(settings, indent=2, default=str))


def final_table(best: Best, config: TrainConfig, run_folder: Path) -> str:
    """Best epoch, its metrics, and where the files are."""
    width = max(map(len, best.metrics))
    lines = [f"best epoch {best.epoch}, by {best.monitor}; ranked: {config.benchmark.protocol}:"]
    lines += [f"  {name:<{width}}  {value:6.2f}" for name, value in best.metrics.items()]
    lines += [f"metrics     {run_folder / 'validation_metrics.csv'}"]
    saved = [(config.save_best, "best model", config.preset.best_file), (config.save_training, "last model", LAST_FILE)]
    lines += [f"{what}  {run_folder / 'saved_models' / name}" for wanted, what, name in saved if wanted]
    return "\n".join(lines)
