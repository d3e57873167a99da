"""Find weights: a given path, `models/weights`, LAVIS's cache folder, the hub's cache, then a download."""

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub.constants import HF_HUB_CACHE

from lavis.models.downloads import download
from lavis.models.model_config import ModelConfig
from lavis.models.weight_formats import read_weights
from sprc.core.errors import InputError, first_line
from sprc.core.places import REPOSITORY
from sprc.core.reading import expanded, readable

logger = logging.getLogger(__name__)

LAVIS_URL = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/"
# What a file holds. Its size follows from the number of parameters and their type.
PUBLISHED = {
    "blip2_pretrained.pth": "Q-Former, about 0.75 GB",
    "blip2_pretrained_vitL.pth": "Q-Former, about 0.75 GB",
    "eva_vit_g.pth": "EVA-CLIP-g ViT, about 2 GB",
    "clip_vit_L.pth": "CLIP ViT-L, 0.6 GB or 1.2 GB by its precision",
}
HUB_FILES = ["config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors", "vocab.txt"]


@dataclass(frozen=True)
class WeightFiles:
    """A weight file or folder, and the ViT's own file if the first holds none."""

    main: Path
    vision: Path | None = None


def find_weights(argument: str | None, config: ModelConfig, download: bool = True) -> WeightFiles | None:
    """The files of initial weights; None for random ones.

    In this order: `argument` (a path, or `random`), `$SPRC_WEIGHTS`, `models/weights`, LAVIS's cache folder, the hub's
    cache, a download. A backbone without published weights (`tiny`) takes only what `argument` names.

    Raises InputError if there are several candidates or none; the message then has every file, its source and place.
    """
    given = argument or (os.environ.get("SPRC_WEIGHTS") if config.weights else None)
    if given:
        return None if given == "random" else _with_vision(_given(expanded(given), config), config, download)
    if not config.weights:
        return None
    main = _local(config) or (_download_main(config) if download else None)
    if main is None:
        raise InputError(how_to_get(config))
    return _with_vision(main, config, download)


def weight_folders() -> list[Path]:
    """The folders in which published files are looked for: one of this repository, and torch.hub's cache, as LAVIS."""
    return [REPOSITORY / "models" / "weights", Path(torch.hub.get_dir()) / "checkpoints"]


def _given(path: Path, config: ModelConfig) -> Path:
    """A path that the user named: a file, a folder of the hub's format, or a folder with the published files."""
    with readable(path):
        if not path.exists():
            raise InputError(f"no weights at {path}: give the path of a weight file, or of a folder of the hub")
        published = path / config.weights if config.weights else path
        return published if path.is_dir() and published.is_file() else path


def _local(config: ModelConfig) -> Path | None:
    """Weights on this machine: the only checkpoint in `models/weights`, or a published file in its usual places."""
    folder = weight_folders()[0]
    with readable(folder):
        found = [
            p for p in sorted(folder.glob("*")) if p.suffix in (".pt", ".safetensors") or (p / "config.json").is_file()
        ]
    if len(found) > 1:
        raise InputError(
            f"{folder} holds {len(found)} checkpoints ({', '.join(p.name for p in found)}): name one by `weights` PATH"
            " or SPRC_WEIGHTS"
        )
    return found[0] if found else _published(config.weights, weight_folders()) or _hub_snapshot(config)


def _published(name: str, folders: list[Path]) -> Path | None:
    for folder in folders:
        with readable(folder / name):
            if (folder / name).is_file():
                return folder / name
    return None


def _hub_snapshot(config: ModelConfig) -> Path | None:
    """The folder of the hub's cache with this model's weights, if it has all of them."""
    if not config.hub_weights:
        return None
    found = huggingface_hub.try_to_load_from_cache(config.hub_weights, "config.json")
    folder = Path(found).parent if isinstance(found, str) else None
    names = ("model.safetensors", "model.safetensors.index.json")
    return folder if folder and any((folder / name).is_file() for name in names) else None


def _with_vision(main: Path, config: ModelConfig, download: bool) -> WeightFiles:
    """Find the ViT of a file that holds none: in its folder, among published files, or by download."""
    if not config.vision_weights or read_weights(main).holds_vision:
        return WeightFiles(main)
    vision = _published(config.vision_weights, [main.parent, *weight_folders()])
    if vision is None and download:
        vision = _try_download(config.vision_weights)
    if vision is None:
        raise InputError(f"{main} holds no vision encoder. " + how_to_get(config))
    return WeightFiles(main, vision)


def how_to_get(config: ModelConfig) -> str:
    """One message with every file, its size, its source and its place."""
    folders = " or ".join(map(str, weight_folders()))
    lines = ["this backbone needs pretrained weights that are not on this machine. One of:"]
    lines += [f"  - put an SPRC checkpoint (.pt) into {weight_folders()[0]}, or name it by `weights` or SPRC_WEIGHTS"]
    lines += [f"  - put these into {folders}:"]
    lines += [
        f"      {LAVIS_URL}{name} ({PUBLISHED.get(name, 'LAVIS')})" for name in (config.weights, config.vision_weights)
    ]
    if config.hub_weights:
        lines += [
            f"  - have https://huggingface.co/{config.hub_weights} (about 4.7 GB) in the hub's cache {HF_HUB_CACHE},"
        ]
        lines += [f"    or its files in a folder of {weight_folders()[0]}; HF_ENDPOINT names a mirror of the hub"]
    lines += ["  - on a machine with a network: python roi_align_integration/tools/weights/get_weights.py"]
    lines += ["  - `weights` random starts from nothing, for a trial of speed or memory"]
    return "\n".join(lines)


def _download_main(config: ModelConfig) -> Path | None:
    return _try_download(config.weights) or _try_hub(config)


def _try_download(name: str) -> Path | None:
    """A published file, in LAVIS's cache folder; None without a network."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return None
    path = weight_folders()[1] / name
    try:
        download(LAVIS_URL + name, path)
    except OSError as error:
        logger.warning(f"no download of {LAVIS_URL}{name}: {first_line(error)}")
        return None
    return path


def _try_hub(config: ModelConfig) -> Path | None:
    """The hub's files, in its cache and checked; None without a network."""
    if not config.hub_weights or huggingface_hub.constants.HF_HUB_OFFLINE:
        return None
    try:
        folder = Path(huggingface_hub.snapshot_download(config.hub_weights, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub's client raises whatever its HTTP and xet libraries do
        logger.warning(f"no download of {config.hub_weights}: {first_line(error)}")
        return None
    for path in folder.glob("*.safetensors"):
        check_blob(path)
    return folder


def check_blob(path: Path) -> None:
    """Check a large file of the hub's cache against its SHA-256, which is the name of the blob that it links to."""
    blob = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return
    with readable(path), blob.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != blob.name:
        blob.unlink()
        raise InputError(f"{path} was damaged on its way (SHA-256 {found}) and has been removed: run this again")
