"""Model sizes: frozen dataclasses, read from the YAML files in `lavis/configs/models/blip2`."""

import math
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import yaml

from sprc.core.errors import InputError, first_line, shown
from sprc.core.files import read_bytes
from sprc.core.reading import expanded, is_file_name

CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "configs" / "models" / "blip2"
OUTSIDE = "vocabulary_from_outside"  # folder beside a run's YAML file
# Number -> lowest value, the value that is too high, and both in words; every other one is at least 1.
SMALLEST = math.ulp(0.0)
RANGES = {
    "mlp_ratio": (SMALLEST, math.inf, "above 0"),
    "initializer_range": (SMALLEST, math.inf, "above 0"),
    "dropout": (0.0, 1.0, "at least 0 and below 1"),
    "seed": (0, 2**63, "at least 0"),
}


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

    `tokenizer` is a vocabulary file or folder, beside the YAML file or anywhere, or a name on the hub.
    `weights` and `vision_weights` are the files that LAVIS publishes for it, and `hub_weights` the repository on the
    hub with both in one (`weight_sources.py`). If `weights` is empty, random weights are the default (`tiny`).
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
    """`pretrain`, `tiny` or the path of a YAML file -> its path. Raises InputError if there is none."""
    known = CONFIG_FOLDER / f"{model_type}.yaml"
    path = known if known.is_file() else expanded(model_type)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        names = ", ".join(sorted(p.stem for p in CONFIG_FOLDER.glob("*.yaml")))
        raise InputError(f"unknown backbone {model_type!r}: give one of {names}, or the path of a YAML file like those")
    return path


def load_config(model_type: str) -> ModelConfig:
    """Read the configuration of `model_type`. Raises InputError that names the file and the entry."""
    path = config_path(model_type)
    entries = _section(path, "the file", _read_yaml(path), ModelConfig)
    vision = VisionConfig(**_section(path, "vision", entries["vision"], VisionConfig))
    qformer = QformerConfig(**_section(path, "qformer", entries["qformer"], QformerConfig))
    places = {"vision": vision, "qformer": qformer, "tokenizer": _tokenizer_of(path, entries["tokenizer"])}
    config = ModelConfig(**entries | places)
    _check_numbers(path, config)
    _check_sizes(path, config)
    return config


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, instead of the last one taken."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path):
    """The content of a YAML file. Raises InputError that names the file and the place."""
    try:
        return yaml.load(read_bytes(path, "give the path of a model's YAML file"), _Loader)
    except RecursionError as error:
        raise InputError(f"{path} is not valid YAML: it is nested too deeply") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split()) or first_line(error)}") from error


def _tokenizer_of(path: Path, tokenizer):
    """The vocabulary beside the YAML file by its whole path, if it is there; else the entry as it is."""
    if not isinstance(tokenizer, str) or "\\" in tokenizer or "\0" in tokenizer:
        raise InputError(
            f"{path}: tokenizer is {shown(tokenizer)}: write a file or folder, with /, or a name on the hub"
        )
    folder = path.absolute().parent
    kept = folder / kept_vocabulary(Path(tokenizer))
    beside = kept if tokenizer and kept.exists() else folder / tokenizer
    return str(beside) if tokenizer and path.parent != CONFIG_FOLDER and beside.exists() else tokenizer


def kept_vocabulary(place: Path) -> Path:
    """Where a run keeps a vocabulary that lies at `place` from its YAML file: never outside of the run's folder."""
    return Path(OUTSIDE) / place.name if ".." in place.parts else place


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
        kind = known[key].type
        if isinstance(kind, type) and kind in (int, float, str, bool):
            _check_type(path, f"{name}.{key}", value, kind)
    return entries


def _check_type(path: Path, entry: str, value, kind: type) -> None:
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        hint = " (YAML takes 1e3 for a text: write 1.0e+3)" if kind is float and isinstance(value, str) else ""
        raise InputError(f"{path}: {entry} is {shown(value)}; write a value of type {kind.__name__}{hint}")


def _check_numbers(path: Path, config: ModelConfig) -> None:
    """Raise InputError that names the first number that no model can have, or a file name that is none."""
    for section in ("vision", "qformer"):
        for name, value in vars(getattr(config, section)).items():
            low, high, words = RANGES.get(name, (1, math.inf, "at least 1"))
            if isinstance(value, int | float) and not low <= value < high:
                raise InputError(f"{path}: {section}.{name} is {value}; write a number that is {words}")
    for name in ("embed_dim", "max_txt_len"):
        if getattr(config, name) < 1:
            raise InputError(f"{path}: {name} is {getattr(config, name)}; write a number that is at least 1")
    for name in ("weights", "vision_weights"):  # a download writes to a place of this name
        value = getattr(config, name)
        if value and not is_file_name(value):
            raise InputError(f"{path}: {name} is {shown(value)}; write the name of a file, without a folder")


def _check_sizes(path: Path, config: ModelConfig) -> None:
    vision, qformer = config.vision, config.qformer
    if vision.image_size % vision.patch_size:
        raise InputError(f"{path}: vision.image_size must be a multiple of vision.patch_size")
    if vision.width % vision.heads or qformer.hidden_size % qformer.num_attention_heads:
        raise InputError(f"{path}: a width must be a multiple of its number of attention heads")
    if config.qformer.num_query_token + config.max_txt_len > qformer.max_position_embeddings:
        raise InputError(f"{path}: num_query_token + max_txt_len must not exceed max_position_embeddings")
