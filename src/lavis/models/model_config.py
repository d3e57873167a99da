"""Model sizes: frozen dataclasses, read from the YAML files in `lavis/configs/models/blip2`."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import yaml

from lavis.common.errors import InputError

CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "configs" / "models" / "blip2"


@dataclass(frozen=True)
class VisionConfig:
    """The frozen ViT. `seed` makes its random weights the same on every machine (`tiny`); None leaves them to torch."""

    encoder: str
    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    seed: int | None = None

    @property
    def grid_size(self) -> int:
        """Patches along one side of the input frame."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class QformerConfig:
    """The Q-Former: BERT with cross-attention in every `cross_attention_freq`-th layer."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    num_query_token: int = 32
    cross_attention_freq: int = 2
    max_position_embeddings: int = 512
    dropout: float = 0.1
    initializer_range: float = 0.02


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the parameters of a model.

    `tokenizer` is a vocabulary file beside the YAML file, a folder, or a name on the hub.
    `weights` and `vision_weights` are the files that LAVIS publishes for it, and `hub_weights` the repository on the
    hub with both in one (`weight_sources.py`). Where `weights` is empty, random weights are the default (`tiny`).
    """

    vision: VisionConfig
    qformer: QformerConfig
    embed_dim: int
    tokenizer: str
    max_txt_len: int = 32
    weights: str = ""
    vision_weights: str = ""
    hub_weights: str = ""


def config_path(model_type: str) -> Path:
    """`pretrain`, `tiny` or the path of a YAML file -> its path. Raises InputError where there is none."""
    known = CONFIG_FOLDER / f"{model_type}.yaml"
    path = known if known.is_file() else Path(model_type)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        names = ", ".join(sorted(p.stem for p in CONFIG_FOLDER.glob("*.yaml")))
        raise InputError(f"unknown backbone {model_type!r}: give one of {names}, or the path of a YAML file like those")
    return path


def load_config(model_type: str) -> ModelConfig:
    """Read the configuration of `model_type`. Raises InputError that names the file and the entry."""
    path = config_path(model_type)
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    entries = _section(path, "the file", entries, ModelConfig)
    vision = VisionConfig(**_section(path, "vision", entries["vision"], VisionConfig))
    qformer = QformerConfig(**_section(path, "qformer", entries["qformer"], QformerConfig))
    config = ModelConfig(**{**entries, "vision": vision, "qformer": qformer})
    _check_sizes(path, config)
    return config


def _section(path: Path, name: str, entries, cls: type) -> dict:
    """`entries`, once every key is known to `cls`, none is missing and each has the right type."""
    if not isinstance(entries, dict):
        raise InputError(f"{path}: {name} should be a table of settings, not {entries!r}")
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(entries) - set(known))
    missing = sorted(n for n, f in known.items() if f.default is MISSING and n not in entries)
    if unknown or missing:
        raise InputError(f"{path}: {name} has unknown entries {unknown} and lacks {missing}")
    for key, value in entries.items():
        if known[key].type in (int, float, str, bool):
            _check_type(path, f"{name}.{key}", value, known[key].type)
    return entries


def _check_type(path: Path, entry: str, value, kind: type) -> None:
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{path}: {entry} is {value!r}; write a value of type {kind.__name__}")


def _check_sizes(path: Path, config: ModelConfig) -> None:
    vision, qformer = config.vision, config.qformer
    if vision.image_size % vision.patch_size:
        raise InputError(f"{path}: vision.image_size must be a multiple of vision.patch_size")
    if vision.width % vision.heads or qformer.hidden_size % qformer.num_attention_heads:
        raise InputError(f"{path}: a width must be a multiple of its number of attention heads")
    if config.qformer.num_query_token + config.max_txt_len > qformer.max_position_embeddings:
        raise InputError(f"{path}: num_query_token + max_txt_len must not exceed max_position_embeddings")
