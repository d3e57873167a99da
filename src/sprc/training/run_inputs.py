"""The files that a run reads beside weights and images: annotations, boxes, the backbone's YAML; and their prints."""

import hashlib
import shutil
from functools import cache
from pathlib import Path

from lavis.models.model_config import kept_vocabulary, load_config
from sprc.core.files import atomic_writer
from sprc.retrieval.checkpoint_run import BACKBONE_FILE
from sprc.retrieval.options import is_yaml
from sprc.training.config import TrainConfig

VOCABULARY_FILE = "vocab.txt"
BOXES, BACKBONE = "the boxes in the file", "the backbone's YAML file"


@cache
def file_fingerprint(path: Path | None) -> str | None:
    """SHA-256 of a file as this process has first seen it; None if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None and path.is_file() else None


def input_fingerprints(config: TrainConfig) -> dict[str, str | None]:
    """What a run reads -> its fingerprint: every annotation file by its place in the dataset, boxes, own backbone."""
    backbone = Path(config.backbone) if is_yaml(config.backbone) else None
    root = config.benchmark.root
    annotations = {path.relative_to(root).as_posix(): path for path in config.benchmark.annotation_files()}
    files = annotations | {BOXES: config.box_file, BACKBONE: backbone}
    return {name: file_fingerprint(path) for name, path in files.items()}


def changed_inputs(before: dict[str, str | None], now: dict[str, str | None]) -> list[str]:
    """The inputs that are others now, or are no longer there, or were not before."""
    return [name for name in before | now if before.get(name) != now.get(name)]


def keep_backbone(config: TrainConfig, run_folder: Path) -> None:
    """Copy the backbone's YAML, and a vocabulary beside it, into the run's folder: there no later edit reaches them."""
    source, kept = Path(config.backbone), run_folder / BACKBONE_FILE
    if not is_yaml(config.backbone) or source == kept:
        return
    vocabulary = Path(load_config(config.backbone).tokenizer)
    if vocabulary.is_absolute() and vocabulary.is_relative_to(source.parent):
        place = run_folder / kept_vocabulary(vocabulary.relative_to(source.parent))
        for part in ("", VOCABULARY_FILE):  # it is a file, or a folder that holds one
            if (vocabulary / part).is_file():
                _copy(vocabulary / part, place / part)
    _copy(source, kept)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as original, atomic_writer(target) as file:
        shutil.copyfileobj(original, file)
