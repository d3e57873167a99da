"""The files that a run reads beside weights and images: annotations, boxes, the backbone's YAML; and their prints."""

import hashlib
from functools import cache
from pathlib import Path

from sprc.retrieval.options import is_yaml
from sprc.training.config import TrainConfig

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
