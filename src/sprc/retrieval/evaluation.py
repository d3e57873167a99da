"""What the two evaluation scripts share: their flags, and the model that they evaluate."""

import argparse
from dataclasses import fields
from pathlib import Path

from sprc.core.command_line import add_cache_flags, user_path
from sprc.core.errors import InputError
from sprc.core.files import read_json
from sprc.training.config import SETTINGS_FILE, TrainConfig, find_preset

DEFAULTS = {f.name: f.default for f in fields(TrainConfig)}
# What a checkpoint was trained with, and is evaluated with where no flag says otherwise.
OF_RUN = {"blip_model_name": str, "backbone": str, "transform": str, "target_ratio": int | float}


def add_evaluation_flags(parser: argparse.ArgumentParser) -> None:
    """Every flag but `--model-path` stores under the name of a field of `TrainConfig`, which holds its default; that of
    `OF_RUN` is the checkpoint's run's, where its folder is there.
    """
    model = parser.add_argument_group("model")
    model.add_argument("--model-path", type=user_path, required=True, help="checkpoint (.pt) to evaluate")
    model.add_argument("--blip-model-name", help="registered name of the model")
    model.add_argument("--backbone", help="pretrain, pretrain_vitL, tiny, or the path of a model's YAML file")
    model.add_argument("--drop-region-proj", action="store_true", help="leave out a region_proj of another shape")
    data = parser.add_argument_group("data")
    data.add_argument("--data-path", type=user_path, help="folder of the dataset (default: as for training)")
    data.add_argument("--transform", choices=("targetpad", "squarepad"), help="how an image is padded")
    data.add_argument("--target-ratio", type=float, help="targetpad: longer images are padded to this ratio")
    data.add_argument("--num-workers", type=int, help="processes that load images")
    add_cache_flags(data)
    run = parser.add_argument_group("evaluation")
    run.add_argument("--batch-size", type=int, help="images, or queries, at a time")
    run.add_argument("--device", help="auto, cpu, cuda or cuda:N")
    run.add_argument(
        "--precision",
        choices=("auto", "fp16", "bf16", "fp32"),
        help="autocast; auto is fp32 as upstream, but for the ViT",
    )
    run.add_argument("--memory-mib", type=float, help="bound on the ranking's temporary memory, in MiB")
    names = {action.dest for action in parser._actions} - set(OF_RUN)
    parser.set_defaults(**{name: value for name, value in DEFAULTS.items() if name in names and name != "dataset"})


def evaluation_config(arguments: dict, dataset: str = "CIRR") -> TrainConfig:
    """The fields of `TrainConfig` among the arguments, and of the checkpoint's run.

    Raises InputError for an unknown dataset, or no checkpoint.
    """
    find_preset(dataset)
    if not arguments["model_path"].is_file():
        raise InputError(f"no checkpoint at {arguments['model_path']}: give the path of a .pt file as --model-path")
    given = {name: value for name, value in arguments.items() if name in DEFAULTS and name != "dataset"}
    given = {name: value for name, value in given.items() if name not in OF_RUN or value is not None}
    return TrainConfig(dataset=dataset, **settings_of_run(arguments["model_path"]) | given)


def settings_of_run(model_path: Path) -> dict:
    """`OF_RUN` as the run of a checkpoint in `<run>/saved_models` had them; {} for a checkpoint from elsewhere."""
    path = model_path.absolute().parent.parent / SETTINGS_FILE
    if not path.is_file():
        return {}
    saved = read_json(path, dict, "remove it, and give the flags of the run", paths=True)
    from sprc.training.run_inputs import kept_backbone  # heavy: torch

    found = {name: saved[name] for name in OF_RUN if name in saved} | kept_backbone(path.parent)
    wrong = [name for name, value in found.items() if not isinstance(value, OF_RUN[name])]
    if wrong:
        raise InputError(f"{path}: {wrong[0]} is {found[wrong[0]]!r}: remove the file, and give the flags of the run")
    print("settings of the run: " + ", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    return found


def memory_cure(config: TrainConfig) -> str:
    """What to say where an evaluation's memory ran out."""
    return f"{config.batch_size} images at a time are too much for the memory: lower --batch-size"


def load_evaluated(config: TrainConfig, model_path: Path):
    """The checkpoint's model in eval mode -> (model, its eval caption processor, runtime)."""
    from lavis.models import load_model_and_preprocess
    from sprc.core.runtime import choose_runtime

    runtime = choose_runtime(config.device, config.precision)
    model, _, txt_processors = load_model_and_preprocess(
        config.blip_model_name,
        config.backbone,
        is_eval=True,
        device=runtime.device,
        weights=str(model_path),
        drop_region_proj=config.drop_region_proj,
    )
    return model, txt_processors["eval"], runtime


def evaluation_preprocess(config: TrainConfig):
    """The preprocess pipeline of the flags, for the backbone's input size."""
    from lavis.models.model_config import load_config
    from sprc.data.preprocess import build_preprocess

    return build_preprocess(config.transform, config.target_ratio, load_config(config.backbone).vision.image_size)
