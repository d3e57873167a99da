"""Which run goes on, and with which settings."""

from dataclasses import fields
from pathlib import Path

from lavis.common.errors import InputError
from lavis.common.files import read_json
from train_config import FREE_TO_CHANGE, SETTINGS_FILE, STATE_FILE, TrainConfig
from training_state import box_fingerprint, read_state

PLACES = ("data_path", "box_file")
PATHS = (*PLACES, "output_folder")
CACHE = "feature_cache"  # may lie elsewhere, for its key tells what is in it; but a run keeps to it, or to images


def find_run(resume: str, config: TrainConfig) -> Path | None:
    """The folder of the run: `resume` itself, or for `auto` the one saved last of those with these settings; None where
    `auto` finds none.

    Raises InputError where the folder holds no run.
    """
    if resume != "auto":
        folder = Path(resume)
        if not (folder / STATE_FILE).is_file():
            raise InputError(f"--resume {folder}: there is no {STATE_FILE}; give the folder of a run that had begun")
        return folder
    pattern = f"clip_finetuned_on_{config.preset.tag}_{config.blip_model_name}_*/{STATE_FILE}"
    states = sorted(config.output_folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
    alike = [path.parent for path in states if not _differences(path.parent, config)]
    if states and not alike:
        last = states[-1].parent
        print(f"--resume auto: a new run begins; {last.name} differs in {', '.join(_differences(last, config))}")
    return alike[-1] if alike else None


def _differences(run_folder: Path, config: TrainConfig) -> list[str]:
    """What of a run differs from what is asked for, but for the flags that may; data and boxes in another place are
    other ones here, and another precision is another run.
    """
    path = run_folder / SETTINGS_FILE
    if not path.is_file():
        return [f"{SETTINGS_FILE}, which is missing"]
    saved, free = read_json(path, dict, "remove the folder"), {*FREE_TO_CHANGE} - {*PLACES, CACHE, "precision"}
    wanted = {field.name: getattr(config, field.name) for field in fields(config) if field.name not in free}
    flags = [f"--{name.replace('_', '-')}" for name, value in wanted.items() if not _same(name, value, saved.get(name))]
    return flags + ["the boxes in the file"] * (saved.get("boxes") != box_fingerprint(config.box_file))


def resumed_config(run_folder: Path, given: dict) -> TrainConfig:
    """The settings of a run, with those of `given` that may change.

    Raises InputError that names every other flag of `given` whose value is not the run's, or for other boxes.
    """
    state = read_state(run_folder)
    saved = state["config"]
    saved |= {name: Path(saved[name]) for name in PATHS if saved.get(name) is not None}
    known = {field.name for field in fields(TrainConfig)}
    if set(saved) != known or "boxes" not in state or "precision" not in state["optimization"]:
        raise InputError(f"{run_folder} was made by another version of this project: it cannot go on here")
    bound = given.keys() - ({*FREE_TO_CHANGE} - {CACHE})
    changed = [name for name in given if name in bound and not _same(name, given[name], saved[name])]
    if changed:
        flags = ", ".join(f"--{name.replace('_', '-')} {given[name]} (the run: {saved[name]})" for name in changed)
        raise InputError(f"--resume {run_folder}: {flags}: leave out what differs, or start another run")
    config = TrainConfig(**saved | {name: value for name, value in given.items() if name in FREE_TO_CHANGE})
    if box_fingerprint(config.box_file) not in (None, state["boxes"]):  # a file that is not there is named later
        raise InputError(
            f"--resume {run_folder}: {config.box_file} holds other boxes than that run was trained with: give its file"
            " by --box-file, or start another run"
        )
    return config


def _same(name: str, value, saved) -> bool:
    if name == "dataset":
        return value.lower() == str(saved).lower()
    if name == CACHE:
        return (value == "off") == (saved == "off")
    if name in PLACES and None not in (value, saved):
        return Path(value).resolve() == Path(saved).resolve()
    return value == saved
