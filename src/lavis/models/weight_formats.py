"""Formats of weights, one line each in `FORMATS`. The content tells the format, never the name of the file.

A checkpoint of this project is upstream's: `{"epoch": int, "Blip2QformerCirAlignPrompt": state_dict}`. Names are
translated in `weight_names.py`.
"""

import math
import reprlib
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from lavis.models.weight_files import read_content
from lavis.models.weight_names import POSITION_IDS, from_hub
from sprc.core.errors import InputError

State = dict[str, Tensor]

MODEL_NAME = "Blip2QformerCirAlignPrompt"
REGION_PROJ = "region_proj.*"
# What this fork adds: absent from every upstream file, and then freshly initialised.
FORK_ADDS = (REGION_PROJ, "region_token_proj.*", "region_logit_scale")
OPTIONAL = (f"Qformer.{POSITION_IDS}", *FORK_ADDS)
# The head for masked language modelling: in every checkpoint of upstream and LAVIS, used by no pass.
UNUSED = ("Qformer.cls.*",)


@dataclass(frozen=True)
class WeightFormat:
    """Glob patterns: the names that a format may lack, and those of its names that nothing uses; others are errors.

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
# Names that no other format has.
SIGNS = {
    "hub": "vision_model.*",
    "state": "Qformer.bert.*",
    "eva": "blocks.*.attn.q_bias",
    "clip": "transformer.resblocks.*",
}
LAVIS_KEY = "model"
WRAPPERS = (LAVIS_KEY, "state_dict", "model_state_dict")
# DistributedDataParallel puts the first in front of a name, torch.compile the second at the module that it compiled.
DISTRIBUTED, COMPILED = "module", "_orig_mod"
RUN_STATE = {"config", "model", "optimization", "random"}


@dataclass
class Weights:
    """A file that was read: its format, its tensors under upstream's names (memory-mapped), and its epoch or -1.

    `notes` say what is unusual in it.
    """

    path: Path
    format: str
    state: State
    epoch: int = -1
    notes: list[str] = field(default_factory=list)

    @property
    def holds_vision(self) -> bool:
        return any(name.startswith("visual_encoder.") for name in self.state)

    @property
    def title(self) -> str:
        return f"{FORMATS[self.format].title} {self.path}"


def read_weights(path: Path, model_name: str = MODEL_NAME) -> Weights:
    """Read a weight file, or a folder of the hub's format; the content tells the format, never the name.

    No pickled code is ever run. Raises InputError that names the file if it is missing, damaged or unknown.
    """
    path = Path(path)
    content = read_content(path)
    if content.keys() >= RUN_STATE:
        raise InputError(
            f"{path} is the state of a run, not weights: give a file of that run's saved_models, tuned_clip_*.pt, or"
            " continue the run by `resume` RUN"
        )
    key = _place_of_weights(content, model_name)
    if key is None and not any(isinstance(value, Tensor) for value in content.values()):
        raise _unknown(path, content)
    state, notes = _plain_names(_tensors(content if key is None else content[key], path), path)
    kind = _kind_of(state, key)
    if kind is None:
        raise _unknown(path, content)
    if key not in (None, model_name, LAVIS_KEY):
        notes.insert(0, f"its weights lie under the name {key}")
    epoch, odd = (-1, []) if key in (None, LAVIS_KEY) else _epoch_of(content)
    return Weights(path, kind, from_hub(state) if kind == "hub" else state, epoch, notes + odd)


def _unknown(path: Path, content: dict) -> InputError:
    return InputError(
        f"{path} holds {sorted(map(str, content))[:5]}, and no weights that this model can read: give an SPRC"
        " checkpoint, LAVIS's blip2_pretrained*.pth, a .safetensors under upstream's names, or a folder of the hub"
    )


def _place_of_weights(content: dict, model_name: str) -> str | None:
    """The key of the state dict: the class's name, a usual wrapper, or that of the only dictionary of tensors.

    None if the content itself is the state dict.
    """
    known = next((key for key in (model_name, *WRAPPERS) if isinstance(content.get(key), dict)), None)
    if known is not None:
        return known
    states = [key for key, value in content.items() if isinstance(key, str) and _is_state(value)]
    return states[0] if len(states) == 1 else None


def _is_state(value) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())


def _kind_of(state: State, key: str | None) -> str | None:
    """The format of a state dict that lay under `key`."""
    kind = next((kind for kind, sign in SIGNS.items() if any(fnmatchcase(name, sign) for name in state)), None)
    if kind in (None, "state") and key is not None:
        return "lavis" if key == LAVIS_KEY else "sprc"
    return kind


def _tensors(entries: dict, path: Path) -> State:
    """The entries, once all of them are tensors."""
    wrong = [name for name, value in entries.items() if not isinstance(name, str) or not isinstance(value, Tensor)]
    if wrong:
        raise InputError(f"{path}: {wrong[0]!r} is no tensor: the file is not a checkpoint of this model")
    return entries


def _plain_names(state: State, path: Path) -> tuple[State, list[str]]:
    """The tensors under the names that the model itself has, and a note of what was taken off."""
    plain: State = {}
    removed: Counter[str] = Counter()
    for name, value in state.items():
        own, parts = _plain_name(name)
        if own in plain:
            raise InputError(f"{path} holds {own} twice, once as {name}: save the state dict of one model alone")
        plain[own] = value
        removed.update(parts)
    return plain, [f"{part}. taken off {count} names" for part, count in removed.items()]


def _plain_name(name: str) -> tuple[str, set[str]]:
    """A name without what DistributedDataParallel and torch.compile put in, and these parts."""
    parts = name.split(".")
    kept = [part for part in parts if part != COMPILED]
    while kept[:1] == [DISTRIBUTED]:
        kept = kept[1:]
    return ".".join(kept), {part for part in (DISTRIBUTED, COMPILED) if parts.count(part) > kept.count(part)}


def _epoch_of(content: dict) -> tuple[int, list[str]]:
    """The epoch that a file gives, or -1 with a note if it is not a whole number."""
    if "epoch" not in content:
        return -1, []
    value = content["epoch"]
    number = value.item() if isinstance(value, Tensor) and value.dim() == 0 and not value.is_meta else value
    whole = isinstance(number, int) or (isinstance(number, float) and math.isfinite(number) and number.is_integer())
    if whole and not isinstance(number, bool):
        return int(number), []
    shown = reprlib.repr(number) if isinstance(number, (str, float, bool, type(None))) else f"a {type(number).__name__}"
    return -1, [f"its epoch is {shown}, and so unknown"]
