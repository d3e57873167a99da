"""Weight files: recognise a format by its content, check every name, load; and save in upstream's layout.

A checkpoint of this project is upstream's: `{"epoch": int, "Blip2QformerCirAlignPrompt": state_dict}`. What else can
be read is in `FORMATS`, one line a format; names are translated in `weight_names.py`.
"""

import json
import zipfile
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lavis.common.errors import InputError, first_line
from lavis.common.files import atomic_writer
from lavis.models.weight_names import POSITION_IDS, from_hub

State = dict[str, Tensor]

REGION_PROJ = "region_proj.*"
# What this fork adds: absent from every upstream file, and then freshly initialised.
FORK_ADDS = (REGION_PROJ, "region_token_proj.*", "region_logit_scale")
OPTIONAL = (f"Qformer.{POSITION_IDS}", *FORK_ADDS)
# The head for masked language modelling: in every checkpoint of upstream and LAVIS, used by no pass.
UNUSED = ("Qformer.cls.*",)
WORD_EMBEDDINGS = "Qformer.bert.embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class WeightFormat:
    """Which names a format may lack and which of its names nothing uses (glob patterns); any other is an error.

    In `ignored`, `{depth}` is the number of the ViT's blocks: the published ViTs have one block more than is used.
    """

    title: str
    may_lack: tuple[str, ...] = OPTIONAL
    ignored: tuple[str, ...] = UNUSED


FORMATS = {
    "sprc": WeightFormat("SPRC checkpoint"),
    "state": WeightFormat("state dict under upstream's names"),
    "lavis": WeightFormat("LAVIS's pretrained Q-Former", (*OPTIONAL, "prompt_tokens")),
    "hub": WeightFormat("the hub's Blip2ForImageTextRetrieval", (*OPTIONAL, "prompt_tokens", "temp"), ()),
    "eva": WeightFormat("EVA-CLIP ViT", (), ("blocks.{depth}.*", "norm.*", "fc_norm.*", "head.*")),
    "clip": WeightFormat("CLIP ViT", (), ("transformer.resblocks.{depth}.*", "ln_post.*", "proj")),
}
VISION_FORMATS = ("eva", "clip")


@dataclass
class Weights:
    """A file that was read: its format, its tensors under upstream's names (memory-mapped), its epoch or -1."""

    path: Path
    format: str
    state: State
    epoch: int = -1

    @property
    def holds_vision(self) -> bool:
        return any(name.startswith("visual_encoder.") for name in self.state)


@dataclass
class LoadReport:
    """What was loaded. `fresh`: names that the file does not hold and that keep their initial values; `regions`:
    whether it holds region parameters of this fork.
    """

    title: str
    epoch: int
    fresh: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    regions: bool = False

    def __str__(self) -> str:
        names = [name for name in self.fresh if not _matches(name, FORK_ADDS)]
        fresh = [f"not in the file, at their initial values: {', '.join(names)}"] if names else []
        return "; ".join([self.title, *fresh, *self.notes])


def read_weights(path: Path, model_name: str = "Blip2QformerCirAlignPrompt") -> Weights:
    """Read a weight file, or a folder of the hub's format; the format is told by the content, never by the name.

    No pickled code is ever run. Raises InputError that names the file where it is missing, damaged or unknown.
    """
    path = Path(path)
    content = _read_folder(path) if path.is_dir() else _read_file(path)
    if isinstance(content.get(model_name), dict):
        return Weights(path, "sprc", _tensors(content[model_name], path), int(content.get("epoch", -1)))
    if isinstance(content.get("model"), dict):
        return Weights(path, "lavis", _tensors(content["model"], path))
    kind = _kind_of(content)
    if kind is None:
        raise InputError(
            f"{path} holds {sorted(map(str, content))[:5]}, and no weights that this model can read: give an SPRC"
            " checkpoint, LAVIS's blip2_pretrained*.pth, a .safetensors under upstream's names, or a folder of the hub"
        )
    state = _tensors(content, path)
    return Weights(path, kind, from_hub(state) if kind == "hub" else state)


def _kind_of(names: dict) -> str | None:
    """The format of a bare state dict, by names that no other format has."""
    signs = {
        "hub": "vision_model.*",
        "state": "Qformer.bert.*",
        "eva": "blocks.*.attn.q_bias",
        "clip": "transformer.resblocks.*",
    }
    return next((kind for kind, sign in signs.items() if any(fnmatchcase(str(n), sign) for n in names)), None)


def _read_file(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"no weights at {path}: give the path of a weight file, or of a folder of the hub")
    content = read_tensors(path, "download or copy it anew", mapped=True)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def read_tensors(path: Path, cure: str, mapped: bool = False):
    """The content of a torch or safetensors file; `mapped`, for a file that stays as it is: in memory once it is used.

    Raises InputError, with the cure, where it is damaged or holds code.
    """
    try:
        if _is_safetensors(path):
            return load_file(path)
        # Files of before torch 1.6 are no zip archives and cannot be memory-mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # on damaged bytes torch's reader raises whatever it stumbles over
        reason = first_line(error).split(". ")[0]
        if reason.startswith("Weights only load failed"):  # torch's own advice would be to run what the file holds
            reason = "it holds something other than tensors, numbers and texts, and code in a file is never run"
        raise InputError(f"{path} cannot be read as a weight file ({reason}): {cure}") from error


def _is_safetensors(path: Path) -> bool:
    """A safetensors file begins with the length of its header, 8 bytes, and the header's brace."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_folder(folder: Path) -> dict:
    """The tensors of a folder as the hub lays it out: `model.safetensors`, or parts with an index."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return _read_file(folder / "model.safetensors")
    try:
        parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is no index of safetensors parts ({error!r}): download it anew") from error
    return {name: tensor for part in parts for name, tensor in _read_file(folder / part).items()}


def _tensors(entries: dict, path: Path) -> State:
    """The entries, once all of them are tensors."""
    wrong = [name for name, value in entries.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if wrong:
        raise InputError(f"{path}: {wrong[0]!r} is no tensor: the file is not a checkpoint of this model")
    return entries


def load_checkpoint(
    model: nn.Module, path: Path, vision_path: Path | None = None, drop_region_proj: bool = False
) -> LoadReport:
    """Load a weight file into `model`, in the model's own shapes, types and device.

    A model built on the meta device takes the tensors over.

    Args:
        model: a model with `initial_values()` for what a format may lack.
        path: any of `FORMATS` but a ViT alone.
        vision_path: the ViT, where `path` holds none (LAVIS's layout).
        drop_region_proj: leave out a `region_proj` that does not fit, instead of refusing the file.

    Raises:
        InputError: a file cannot be read, or a name is missing, unexpected or wrongly shaped: all are listed.
    """
    weights = read_weights(path, type(model).__name__)
    if weights.format in VISION_FORMATS:
        raise InputError(f"{path} holds the vision encoder alone: give the file of the Q-Former, blip2_pretrained*.pth")
    expected, titles, notes = model.state_dict(), [f"{FORMATS[weights.format].title} {path}"], []
    state = _used(weights, model)
    if not weights.holds_vision and vision_path is not None:
        vision = read_weights(vision_path)
        state |= _vision_state(vision, model)
        titles.append(f"{FORMATS[vision.format].title} {vision_path}" if vision.format in FORMATS else str(vision_path))
    notes += _fit_region_proj(state, expected, path, drop_region_proj) + _fit_vocabulary(state, expected)
    fresh = check_names(state, expected, path, FORMATS[weights.format].may_lack)
    check_position_ids(state, path)
    state |= {name: value for name, value in model.initial_values().items() if name in fresh}
    model.load_state_dict({n: v.to(expected[n].dtype) for n, v in state.items()}, assign=on_meta(model))
    restore_buffers(model)
    regions = any(_matches(name, FORK_ADDS) for name in expected.keys() - set(fresh))
    return LoadReport(" and ".join(titles), weights.epoch, fresh, notes, regions)


def _used(weights: Weights, model: nn.Module) -> State:
    """The tensors without those that the format's table ignores."""
    depth = model.config.vision.depth
    ignored = [pattern.format(depth=depth) for pattern in FORMATS[weights.format].ignored]
    return {name: value for name, value in weights.state.items() if not _matches(name, ignored)}


def _vision_state(vision: Weights, model: nn.Module) -> State:
    """A ViT's own file as part of the model's state. Raises InputError where it does not fit."""
    prefix = "visual_encoder."
    if vision.format not in VISION_FORMATS:
        raise InputError(f"{vision.path} is {FORMATS[vision.format].title}, not a vision encoder")
    state = {prefix + name: value for name, value in _used(vision, model).items()}
    expected = {name: value for name, value in model.state_dict().items() if name.startswith(prefix)}
    check_names(state, expected, vision.path, FORMATS[vision.format].may_lack)
    return state


def _fit_region_proj(state: State, expected: State, path: Path, drop: bool) -> list[str]:
    """Take a `region_proj` that does not fit off the state where `drop` says so; else raise InputError."""
    foreign = [
        name
        for name in state
        if _matches(name, [REGION_PROJ]) and (name not in expected or state[name].shape != expected[name].shape)
    ]
    if not foreign:
        return []
    shapes = ", ".join(f"{name} {tuple(state[name].shape)}" for name in foreign)
    if not drop:
        raise InputError(
            f"{path} has a region_proj that is not this model's ({shapes}), from another port of the region features:"
            " --drop-region-proj loads everything else"
        )
    for name in [name for name in state if _matches(name, [REGION_PROJ])]:
        del state[name]
    return [f"region_proj of the file dropped ({shapes})"]


def _fit_vocabulary(state: State, expected: State) -> list[str]:
    """BERT's own vocabulary is one token short of upstream's: give `[DEC]` a row. No caption contains that token."""
    words = state.get(WORD_EMBEDDINGS)
    if words is None or words.dim() != 2 or len(words) + 1 != len(expected[WORD_EMBEDDINGS]):
        return []
    state[WORD_EMBEDDINGS] = torch.cat([words, words.new_zeros(1, words.shape[1])])
    return [f"{len(words)} word embeddings in the file, and a row of zeros for [DEC], which no caption contains"]


def check_names(state: State, expected: State, path: Path, may_lack: tuple[str, ...] = ()) -> list[str]:
    """The names that `state` may lack, and lacks, but for position ids.

    Raises InputError that lists every other name that is missing, unexpected or wrongly shaped.
    """
    absent = [name for name in expected if name not in state]
    shapes = [
        f"{n}: {tuple(state[n].shape)} in the file, {tuple(expected[n].shape)} in the model"
        for n in expected
        if n in state and state[n].shape != expected[n].shape
    ]
    missing = [name for name in absent if not _matches(name, may_lack)]
    unexpected = [name for name in state if name not in expected]
    lists = {"missing": missing, "unexpected": unexpected, "wrongly shaped": shapes}
    wrong = [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in lists.items() if names]
    if wrong:
        hint = ""
        if missing and all(name.startswith("visual_encoder.") for name in missing):
            hint = (
                " The file holds no vision encoder: put eva_vit_g.pth, or clip_vit_L.pth for pretrain_vitL, beside it."
            )
        raise InputError(f"{path} does not fit this model and backbone. " + "; ".join(wrong) + "." + hint)
    return [name for name in absent if not name.endswith(POSITION_IDS)]


def _matches(name: str, patterns) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_position_ids(state: State, path: Path) -> None:
    """Raises InputError unless stored position ids, where there are any, are 0, 1, 2, ..."""
    for name, value in state.items():
        if name.endswith(POSITION_IDS) and not torch.equal(value.flatten(), torch.arange(value.numel())):
            raise InputError(f"{path}: {name} is not 0, 1, 2, ...: the file is not from this architecture")


def on_meta(model: nn.Module) -> bool:
    """Whether the parameters have shapes but no memory yet."""
    return any(parameter.is_meta for parameter in model.parameters())


def restore_buffers(model: nn.Module) -> None:
    """Give every buffer that a state dict does not hold its value: timm's key bias, which is zero by definition."""
    for module in model.modules():
        if isinstance(getattr(module, "k_bias", None), Tensor):
            module.k_bias = torch.zeros_like(module.q_bias)


def save_model(model: nn.Module, epoch: int, path: Path) -> None:
    """Write `{"epoch", class name: state to save}` to `path`; a file there is replaced only once all is written."""
    with atomic_writer(path) as file:
        torch.save({"epoch": epoch, type(model).__name__: state_to_save(model)}, file)


def state_to_save(model: nn.Module) -> State:
    """The state dict; without the region parameters where the model does not use them: upstream's names alone."""
    unused = () if model.use_region_loss else FORK_ADDS
    return {name: value for name, value in model.state_dict().items() if not _matches(name, unused)}
