"""The settings of a retriever: which weights, how images are read, where numbers are computed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sprc.core.command_line import absolute
from sprc.core.errors import InputError, shown
from sprc.core.options import check_options, option
from sprc.core.reading import is_file_name
from sprc.index.gallery_files import CHECKPOINT, IndexFolder
from sprc.retrieval.checkpoint_run import checked_settings, kept_backbone, settings_of_run
from sprc.retrieval.options import ImageOptions, ModelOptions, RuntimeOptions, is_yaml
from sprc.retrieval.search_options import EngineOptions, IndexOptions


@dataclass(frozen=True, kw_only=True)
class RetrieverConfig(RuntimeOptions, ModelOptions, EngineOptions, IndexOptions, ImageOptions):
    """A retriever; `model_path` is a file or folder of weights in any format that docs/weights.md names."""

    model_path: Path = option("weights", default=...)

    def __post_init__(self) -> None:
        check_options(self)
        if self.uri is not None and self.engine != "milvus":
            raise InputError("`uri` has no effect without `engine` milvus: give both, or neither")


def config_of_checkpoint(path: str | Path, given: dict[str, Any]) -> RetrieverConfig:
    """What is given, and for the rest the settings of the checkpoint's run. Raises InputError if there is none."""
    model_path = absolute(path)
    if not model_path.exists():
        raise InputError(f"no weights at {path}: give the checkpoint of a run, or another file of weights")
    return RetrieverConfig(**settings_of_run(model_path) | given | {"model_path": model_path})


def config_of_index(path: Path, given: dict[str, Any]) -> RetrieverConfig:
    """What is given, and for the rest the settings that an index was made with.

    The weights are those that its link `checkpoint` leads to. Raises InputError if it leads nowhere.
    """
    folder = IndexFolder(path)
    _, _, settings = folder.read_head()
    saved = checked_settings(settings, path / "index.json", folder.fix)
    if not is_file_name(saved.get("backbone", "tiny")):
        raise InputError(f"{path / 'index.json'}: the backbone {shown(saved['backbone'])} is no name: {folder.fix}")
    if is_yaml(saved.get("backbone", "")):
        saved = {name: value for name, value in saved.items() if name != "backbone"} | kept_backbone(path)
        if "backbone" not in saved | given:
            raise InputError(f"{path} has lost its backbone.yaml: {folder.fix}, or give `backbone`")
    linked = folder.link(CHECKPOINT)
    if "model_path" not in given and (linked is None or not linked.exists()):
        raise InputError(f"{path / CHECKPOINT} leads to no weights: give them as `model_path`")
    return RetrieverConfig(**saved | {"model_path": linked} | given)
