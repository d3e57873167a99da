"""A run from its configuration: model, data, engine, and the folder that it leaves behind."""

import json
import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path

import timm
import torch
import transformers
from torch import nn
from torch.utils.data import Subset

from data_utils import ImageDataset, TrainingTriplets
from lavis.models import load_model_and_preprocess
from lavis.models.model_config import load_config
from sprc.benchmarks.dataset_catalog import make_validation, open_galleries, open_triplets, training_sentences
from sprc.benchmarks.retrieval_task import Validation
from sprc.core.files import held, unwritable, write_atomically
from sprc.core.machine_faults import explained, training_memory_cure
from sprc.core.process_group import join_world, leave_world
from sprc.core.runtime import Runtime, choose_runtime
from sprc.data.feature_cache import use_feature_cache
from sprc.data.image_check import check_images
from sprc.data.preprocess import build_preprocess
from sprc.training import engine
from sprc.training.config import LAST_FILE, SETTINGS_FILE, TrainConfig
from sprc.training.run_inputs import input_fingerprints, keep_backbone
from sprc.training.run_state import Best, read_state


def run_training(config: TrainConfig, resumed: Path | None = None) -> Best:
    """Build everything, train, print the table; `resumed` is the folder of a run to go on with.

    Data is checked before the model is loaded. Raises InputError for bad input and for what the machine cannot do.
    """
    with explained(training_memory_cure(config.batch_size, config.micro_batch, config.feature_cache != "off")):
        return _run_training(config, resumed)


def _run_training(config: TrainConfig, resumed: Path | None) -> Best:
    state = None if resumed is None else read_state(resumed)
    runtime = choose_runtime(config.device, config.precision)
    runtime = replace(runtime, world=join_world(runtime.device))
    size = load_config(config.backbone).vision.image_size
    preprocess = build_preprocess(config.transform, config.target_ratio, size)
    train_set, galleries = open_triplets(config, preprocess), open_galleries(config, preprocess)
    check_images(train_set, *galleries.values(), quiet=not runtime.world.is_main)
    torch.manual_seed(engine.derived_seed(config.seed, 2**31))  # random initial weights are no epoch's
    with runtime.world.main_first():
        model, _, txt_processors = load_model_and_preprocess(
            config.blip_model_name,
            config.backbone,
            device=runtime.device,
            weights=config.weights,
            drop_region_proj=config.drop_region_proj,
            use_region_loss=config.use_region_loss,
            region_objective=config.region_objective,
        )
    validation = make_validation(config, galleries, txt_processors["eval"])
    run_folder = runtime.world.share((resumed or make_run_folder(config)) if runtime.world.is_main else None)
    with held(run_folder) if runtime.world.is_main else nullcontext():
        best = _train_in(run_folder, config, runtime, model, txt_processors["train"], train_set, validation, state)
    leave_world()
    return best


def _train_in(
    run_folder: Path,
    config: TrainConfig,
    runtime: Runtime,
    model: nn.Module,
    process_caption: Callable[[str], str],
    train_set: ImageDataset,
    validation: Validation,
    state: dict | None,
) -> Best:
    """Train in a folder that this run alone holds: from here on files are written."""
    if runtime.world.is_main:
        keep_backbone(config, run_folder)
        write_hyperparameters(config, runtime, run_folder)
    print(f"{len(train_set)} triplets; {validation}; {runtime.device}; run {run_folder}", flush=True)
    triplets = TrainingTriplets(train_set)
    if config.max_triplets is not None:
        triplets = Subset(triplets, range(min(config.max_triplets, len(triplets))))
    galleries = [task.gallery for task in validation.tasks.values()]
    use_feature_cache(config, model, runtime.device, train_set, *galleries, world=runtime.world)
    if config.compile:
        compile_model(model, images=config.feature_cache == "off")
    to_device = partial(train_set.on_device, device=runtime.device)
    make_samples = sample_maker(process_caption, training_sentences(config), to_device)
    best = engine.fit(model, triplets, make_samples, validation, config, runtime, run_folder, state)
    print(final_table(best, config, run_folder), flush=True)
    return best


def compile_model(model: nn.Module, images: bool, **options) -> None:
    """Compile the Q-Former and, where it has images to encode, the ViT; in place, so that names stay as they are.

    The ViT block by block: they are alike, so that one compilation serves all. `options` are `torch.compile`'s.
    """
    model.Qformer.model.compile(**options)
    for block in model.visual_encoder.blocks if images else ():
        block.compile(**options)


def sample_maker(process_caption: Callable, sentences: Callable, to_device: Callable) -> Callable[[dict], dict]:
    """The function from a batch of `TrainingTriplets` to the model's `samples`; `to_device` moves images."""

    def make_samples(batch: dict) -> dict:
        images = {name: to_device(batch[name]) for name in ("image", "target")}
        samples = images | {"text_input": [process_caption(text) for text in sentences(batch["caption"])]}
        return samples | region_samples(batch)

    return make_samples


def region_samples(batch: dict) -> dict:
    """What the region loss needs of a batch, and the regions used and dropped per image; nothing without boxes."""
    boxes = {"region_boxes": batch["reference_boxes"], "target_region_boxes": batch["target_boxes"]}
    if batch["reference_boxes"][0] is None:
        return {}
    images = 2 * len(batch["dropped"])
    used = sum(len(of_image) for side in boxes.values() for of_image in side)
    statistics = {"regions_per_image": used / images, "dropped_per_image": sum(batch["dropped"]) / images}
    return boxes | {"target_names": batch["target_name"], "statistics": statistics}


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
    versions = {m.__name__: m.__version__ for m in (torch, timm, transformers)} | {"python": platform.python_version()}
    settings = asdict(config) | {"ran_on": str(runtime.device), "dtype": str(runtime.dtype), "versions": versions}
    settings |= {"processes": runtime.world.size, "inputs": input_fingerprints(config)}
    write_atomically(run_folder / SETTINGS_FILE, json.dumps(settings, indent=2, default=str))


def final_table(best: Best, config: TrainConfig, run_folder: Path) -> str:
    """Best epoch, its metrics, and where the files are."""
    width = max(map(len, best.metrics))
    lines = [f"best epoch {best.epoch}, by {best.monitor}; ranked: {config.protocol}:"]
    lines += [f"  {name:<{width}}  {value:6.2f}" for name, value in best.metrics.items()]
    lines += [f"metrics     {run_folder / 'validation_metrics.csv'}"]
    saved = [(config.save_best, "best model", config.preset.best_file), (config.save_training, "last model", LAST_FILE)]
    lines += [f"{what}  {run_folder / 'saved_models' / name}" for wanted, what, name in saved if wanted]
    return "\n".join(lines)
