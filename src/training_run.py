"""A run from its configuration: model, data, engine, and the folder that it leaves behind."""

import json
import platform
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import timm
import torch
import transformers
from torch.utils.data import Subset

import engine
from data_utils import CIRRDataset, build_preprocess
from lavis.models import load_model_and_preprocess
from retrieval_task import cirr_task
from train_config import LAST_FILE, TrainConfig
from utils import write_atomically


def run_training(config: TrainConfig) -> engine.Best:
    """Build everything, train, print the table. Data is checked before the model is loaded."""
    runtime = engine.choose_runtime(config.device, config.precision)
    train_set, gallery = open_datasets(config)
    torch.manual_seed(engine.derived_seed(config.seed, 2**31))  # random initial weights are no epoch's
    model, _, txt_processors = load_model_and_preprocess(
        config.blip_model_name, config.backbone, device=runtime.device, weights=config.weights
    )
    _set_input_size(model.config.vision.image_size, config, train_set, gallery)
    run_folder = make_run_folder(config)
    write_hyperparameters(config, runtime, run_folder)
    print(
        f"{len(train_set)} triplets, {len(gallery)} images to validate on, {runtime.device}, run {run_folder}",
        flush=True,
    )

    def make_samples(batch: list) -> dict:
        reference, target, captions = batch
        images = {"image": reference, "target": target}
        moved = {name: value.to(runtime.device, non_blocking=True) for name, value in images.items()}
        return moved | {"text_input": [txt_processors["train"](caption) for caption in captions]}

    if config.max_triplets is not None:
        train_set = Subset(train_set, range(min(config.max_triplets, len(train_set))))
    best = engine.fit(
        model, train_set, make_samples, cirr_task(gallery, txt_processors["eval"]), config, runtime, run_folder
    )
    print(final_table(best, config, run_folder), flush=True)
    return best


def open_datasets(config: TrainConfig) -> tuple[CIRRDataset, CIRRDataset]:
    """The training triplets and the validation gallery, every image of both known to be there."""
    preprocess = build_preprocess(config.transform, config.target_ratio)
    train_set = CIRRDataset("train", "relative", preprocess, config.data_path)
    gallery = CIRRDataset("val", "classic", preprocess, config.data_path)
    train_set.check_images()
    gallery.check_images()
    return train_set, gallery


def _set_input_size(dim: int, config: TrainConfig, *datasets: CIRRDataset) -> None:
    for dataset in datasets:
        dataset.preprocess = build_preprocess(config.transform, config.target_ratio, dim)


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
    raise FileExistsError(f"{config.output_folder / name} and 999 folders after it exist")


def write_hyperparameters(config: TrainConfig, runtime: engine.Runtime, run_folder: Path) -> None:
    versions = {m.__name__: m.__version__ for m in (torch, timm, transformers)} | {"python": platform.python_version()}
    settings = asdict(config) | {"device": str(runtime.device), "dtype": str(runtime.dtype), "versions": versions}
    write_atomically(run_folder / "training_hyperparameters.json", json.dumps(settings, indent=2, default=str))


def final_table(best: engine.Best, config: TrainConfig, run_folder: Path) -> str:
    """Best epoch, its metrics, and where the files are."""
    width = max(map(len, best.metrics))
    lines = [f"best epoch {best.epoch}, by {best.monitor}:"]
    lines += [f"  {name:<{width}}  {value:6.2f}" for name, value in best.metrics.items()]
    lines += [f"metrics     {run_folder / 'validation_metrics.csv'}"]
    saved = [(config.save_best, "best model", config.preset.best_file), (config.save_training, "last model", LAST_FILE)]
    lines += [f"{what}  {run_folder / 'saved_models' / name}" for wanted, what, name in saved if wanted]
    return "\n".join(lines)
