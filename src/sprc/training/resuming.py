"""Which run continues, and with which settings."""

import logging
from dataclasses import fields
from pathlib import Path

from sprc.core.command_line import absolute
from sprc.core.errors import InputError
from sprc.core.reading import read_json
from sprc.retrieval.checkpoint_run import SETTINGS_FILE, kept_backbone
from sprc.retrieval.options import is_yaml
from sprc.training.config import FREE_TO_CHANGE, STATE_FILE, TrainConfig
from sprc.training.run_inputs import (
    BACKBONE,
    BOXES,
    changed_inputs,
    file_fingerprint,
    input_fingerprints,
)
from sprc.training.run_state import read_state

logger = logging.getLogger(__name__)

PLACES = ("data_path", "box_file")
CACHE = "feature_cache"  # may lie elsewhere, for its key tells what is in it; but a run keeps to it, or to images
# Free for the continuation of a named run; `auto` looks for a run that has the same.
SAME_FOR_AUTO = {*PLACES, CACHE, "precision", "schedule_epochs"}


def named_run(resume: str) -> Path:
    """The folder of a run that is to continue. Raises InputError if it holds no run."""
    folder = absolute(resume)
    if not (folder / STATE_FILE).is_file():
        raise InputError(f"`resume` {folder}: there is no {STATE_FILE}; give the folder of a run that had begun")
    return folder


def find_run(config: TrainConfig) -> Path | None:
    """The folder of the run that was saved last, of those with these settings and inputs; None if there is none.

    A folder whose settings cannot be read is left out, and said.
    """
    pattern = f"clip_finetuned_on_{config.preset.tag}_{config.blip_model_name}_*/{STATE_FILE}"
    states = sorted(config.output_folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    last = ""
    for folder in (path.parent for path in states):
        differences = _differences(folder, config)
        if not differences:
            return folder
        last = last or f"{folder.name} differs in {', '.join(differences)}"
    if last:
        logger.info(f"`resume` auto: a new run begins; {last}")
    return None


def _differences(run_folder: Path, config: TrainConfig) -> list[str]:
    """What of a run differs from what is asked for, but for the settings that may.

    Another folder of data, another box file and another precision count as differences here.
    """
    path = run_folder / SETTINGS_FILE
    try:
        saved = read_json(path, dict, "remove the folder", paths=True)
    except InputError as error:
        logger.info(f"`resume` auto leaves out {run_folder}: {error}")
        return [f"{SETTINGS_FILE}, which cannot be read"]
    free = {*FREE_TO_CHANGE} - SAME_FOR_AUTO
    wanted = {name: value for name, value in config.settings().items() if name not in free}
    settings = [f"`{name}`" for name, value in wanted.items() if not _same(name, value, saved.get(name))]
    inputs = saved.get("inputs")
    return settings + changed_inputs(inputs if isinstance(inputs, dict) else {}, input_fingerprints(config))


def resumed_config(run_folder: Path, given: dict) -> TrainConfig:
    """The settings of a run, with those of `given` that may change.

    The run keeps its plan: if `given` has another `num_epochs`, learning rate and region weight continue as they were
    planned for the number that the run began with. Raises InputError that names every other flag of `given` whose
    value is not the run's, or the inputs that are others.
    """
    state = read_state(run_folder)
    saved = state["config"]
    known = {field.name for field in fields(TrainConfig)}
    inputs, optimization = state.get("inputs"), state.get("optimization")
    whole = isinstance(inputs, dict) and isinstance(optimization, dict) and "steps" in optimization
    if set(saved) != known or not whole:
        raise InputError(f"{run_folder} was made by another version of this project: it cannot continue here")
    saved |= kept_backbone(run_folder)
    bound = given.keys() - ({*FREE_TO_CHANGE} - {CACHE})
    changed = [name for name in given if name in bound and not _same(name, given[name], saved[name])]
    if changed:
        settings = ", ".join(f"`{name}` {given[name]} (the run: {saved[name]})" for name in changed)
        raise InputError(f"`resume` {run_folder}: {settings}: leave out what differs, or start another run")
    free = {name: value for name, value in given.items() if name in FREE_TO_CHANGE}
    planned = saved["planned_epochs"] or saved["num_epochs"]
    config = TrainConfig(**saved | free | {"planned_epochs": planned})
    _check_inputs(run_folder, state["inputs"], config)
    return config


def _check_inputs(run_folder: Path, before: dict[str, str | None], config: TrainConfig) -> None:
    """Raises InputError that names the files whose content is not the run's; one that is gone is named later."""
    now = input_fingerprints(config)
    changed = [name for name in changed_inputs(before, now) if now.get(name) is not None]
    if not changed:
        return
    if BOXES in changed:
        what, fix = f"{config.box_file} holds other boxes than that run was trained with", "its file by `box_file`"
    elif BACKBONE in changed:
        what, fix = f"{config.backbone} is not the backbone that run was trained with", "the old one by `backbone`"
    else:
        where = config.data_path or "this project's folder of the dataset"
        what, fix = f"{', '.join(changed)} in {where} are not those of that run", "its data by `data_path`"
    raise InputError(f"`resume` {run_folder}: {what}: give {fix}, or start another run")


def _same(name: str, value, saved) -> bool:
    if name == "dataset":
        return value.lower() == str(saved).lower()
    if name == CACHE:
        return (value == "off") == (saved == "off")
    if name in PLACES and None not in (value, saved):
        return _is_path(saved) and Path(value).resolve() == Path(saved).resolve()
    if name == "backbone" and is_yaml(value) and is_yaml(str(saved)):
        return _same_file(absolute(value), Path(saved))
    return value == saved


def _is_path(saved) -> bool:
    """Whether an entry of a settings file, which anything may have written, can be a path."""
    return isinstance(saved, str | Path) and "\0" not in str(saved)


def _same_file(path: Path, saved: Path) -> bool:
    """Whether two files have the same content, or one of them is gone: what the run keeps is then as good."""
    return len({file_fingerprint(path), file_fingerprint(saved)} - {None}) < 2
