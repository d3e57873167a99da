"""Keeps a model's YAML file with what was made by it: a run, or an index; `checkpoint_run` reads it again."""

import shutil
from pathlib import Path

from lavis.models.model_config import kept_vocabulary, load_config
from sprc.core.files import atomic_writer
from sprc.retrieval.checkpoint_run import BACKBONE_FILE
from sprc.retrieval.options import is_yaml

VOCABULARY_FILE = "vocab.txt"


def keep_backbone(backbone: str, folder: Path) -> None:
    """Copy a backbone's YAML, and a vocabulary beside it, into a folder: there no later edit reaches them."""
    source, kept = Path(backbone), folder / BACKBONE_FILE
    if not is_yaml(backbone) or source == kept:
        return
    vocabulary = Path(load_config(backbone).tokenizer)
    if vocabulary.is_absolute() and vocabulary.is_relative_to(source.parent):
        place = folder / kept_vocabulary(vocabulary.relative_to(source.parent))
        for part in ("", VOCABULARY_FILE):  # it is a file, or a folder that holds one
            if (vocabulary / part).is_file():
                _copy(vocabulary / part, place / part)
    _copy(source, kept)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as original, atomic_writer(target) as file:
        shutil.copyfileobj(original, file)
