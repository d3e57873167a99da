"""Settings read back from the `training_hyperparameters.json` of a run."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from sprc.core.errors import InputError
from sprc.core.reading import read_json
from sprc.retrieval.checkpoint_run import kept_backbone
from sprc.training.config import TrainConfig

# What a run writes beside its settings.
OF_THE_RUN = ("ran_on", "dtype", "versions", "processes", "inputs", "planned_epochs")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a run, without what was the machine's or the run's own; a backbone of its own is the kept one.

    Raises InputError for a file that is none, or that holds a setting which this version does not have.
    """
    fix = "give the training_hyperparameters.json of a run"
    saved = read_json(path, dict, fix, paths=True)
    known = {field.name for field in fields(TrainConfig)}
    unknown = [name for name in saved if name not in known and name not in OF_THE_RUN]
    if unknown:
        raise InputError(f"{path} has the setting {unknown[0]!r}, which this version does not have: remove it")
    return {name: value for name, value in saved.items() if name not in OF_THE_RUN} | kept_backbone(path.parent)
