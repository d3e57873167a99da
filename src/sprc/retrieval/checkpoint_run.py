"""The settings with which a checkpoint is used: those of its run, which lie in the run's folder, and the flags."""

import logging
from pathlib import Path
from typing import Any

from sprc.benchmarks import find_benchmark
from sprc.core.command_line import absolute
from sprc.core.errors import InputError
from sprc.core.reading import read_json
from sprc.retrieval.options import EvaluationConfig

logger = logging.getLogger(__name__)

SETTINGS_FILE = "training_hyperparameters.json"
BACKBONE_FILE = "backbone.yaml"
# What a checkpoint was trained with, and is evaluated with unless a flag says otherwise.
OF_RUN = {"blip_model_name": str, "backbone": str, "transform": str, "target_ratio": int | float}


def evaluation_config(given: dict[str, Any]) -> EvaluationConfig:
    """The configuration of an evaluation: what is given, and for the rest the settings of the checkpoint's run.

    Raises InputError for an unknown dataset, no checkpoint, or settings that cannot be.
    """
    find_benchmark(given["dataset"])
    model_path = absolute(given["model_path"])
    if not model_path.is_file():
        raise InputError(f"no checkpoint at {given['model_path']}: give the path of a .pt file as `model_path`")
    return EvaluationConfig(**settings_of_run(model_path) | given)


def settings_of_run(model_path: Path) -> dict[str, Any]:
    """`OF_RUN` as the run of a checkpoint in `<run>/saved_models` had them; {} for a checkpoint from elsewhere."""
    path = model_path.absolute().parent.parent / SETTINGS_FILE
    if not path.is_file():
        return {}
    saved = read_json(path, dict, "remove it, and give the flags of the run", paths=True)
    found = checked_settings(saved, path, "remove the file, and give the flags of the run") | kept_backbone(path.parent)
    logger.info("settings of the run: " + ", ".join(f"{name} {value}" for name, value in found.items()))
    return found


def checked_settings(saved: dict[str, Any], path: Path, fix: str) -> dict[str, Any]:
    """Those of `OF_RUN` that a file holds. Raises InputError for one of another type."""
    found = {name: saved[name] for name in OF_RUN if name in saved}
    wrong = [name for name, value in found.items() if not isinstance(value, OF_RUN[name])]
    if wrong:
        raise InputError(f"{path}: {wrong[0]} is {found[wrong[0]]!r}: {fix}")
    return found


def kept_backbone(run_folder: Path) -> dict[str, str]:
    """`{"backbone": path}` of the YAML that a run keeps; {} for a run with a backbone of this project."""
    kept = run_folder / BACKBONE_FILE
    return {"backbone": str(kept)} if kept.is_file() else {}
