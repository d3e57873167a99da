"""Every question of names and formats of weights, in both directions.

A checkpoint has upstream's names and layout: `{"epoch": int, "Blip2QformerCirAlignPrompt": state_dict}`. The modules
translate as they save and load, so `model.state_dict()` and `model.load_state_dict()` speak upstream's names too.
"""

import os
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from lavis.common.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[3]

# (name here, upstream's name): parts of a Q-Former parameter's name, tried in order. No new name contains an old one.
QFORMER_NAMES = (
    ("word_embeddings.", "bert.embeddings.word_embeddings."),
    ("position_embeddings.", "bert.embeddings.position_embeddings."),
    ("model.layernorm.", "bert.embeddings.LayerNorm."),
    ("model.encoder.", "bert.encoder."),
    (".crossattention.attention.", ".crossattention.self."),
    (".attention.attention.", ".attention.self."),
)
POSITION_IDS = "bert.embeddings.position_ids"
# Upstream's head for masked language modelling: part of every checkpoint, used by no pass.
UNUSED_PREFIX = "Qformer.cls."


def to_upstream_name(name: str) -> str:
    """A Q-Former parameter's name here -> upstream's, both without the leading `Qformer.`."""
    for ours, theirs in QFORMER_NAMES:
        name = _replace(name, ours, theirs)
    return name


def from_upstream_name(name: str) -> str:
    """Upstream's name of a Q-Former parameter -> the name here, both without the leading `Qformer.`."""
    for ours, theirs in QFORMER_NAMES:
        name = _replace(name, theirs, ours)
    return name


def _replace(name: str, old: str, new: str) -> str:
    """Replace a dotted part: at the start of the name, or anywhere where the part itself begins with a dot."""
    if old.startswith("."):
        return name.replace(old, new)
    return new + name[len(old) :] if name.startswith(old) else name


def rename_on_save(module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    """State-dict hook of the Q-Former: upstream's names, and the position ids that upstream stores as a buffer."""
    for key in [k for k in state_dict if k.startswith(prefix)]:
        state_dict[prefix + to_upstream_name(key[len(prefix) :])] = state_dict.pop(key)
    positions = module.position_embeddings.weight
    state_dict[prefix + POSITION_IDS] = torch.arange(positions.shape[0], device=positions.device)[None]


def rename_on_load(module: nn.Module, state_dict: dict, prefix: str, *_unused) -> None:
    """Load hook of the Q-Former: the way back. Position ids are taken off: they are arange by construction."""
    state_dict.pop(prefix + POSITION_IDS, None)
    for key in [k for k in state_dict if k.startswith(prefix) and not k.startswith(prefix + "cls.")]:
        state_dict[prefix + from_upstream_name(key[len(prefix) :])] = state_dict.pop(key)
    for key in [k for k in state_dict if k.startswith(prefix + "cls.")]:
        del state_dict[key]


def save_model(model: nn.Module, epoch: int, path: Path) -> None:
    """Write `{"epoch", class name: state_dict}` to `path`; a file of that name is replaced only once all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save({"epoch": epoch, type(model).__name__: model.state_dict()}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_checkpoint(path: Path, model_name: str) -> tuple[dict[str, Tensor], int]:
    """The state dict and the epoch of an SPRC checkpoint, memory-mapped on the CPU; no pickled code is ever run.

    Raises InputError that names the file where it is missing, damaged, or holds another model.
    """
    if not path.is_file():
        raise InputError(f"no weights at {path}: give the path of an SPRC checkpoint (.pt)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} cannot be read as a PyTorch checkpoint ({reason}): download or copy it anew"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get(model_name), dict):
        found = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path} holds no {model_name}, but {found}: it is not a checkpoint of this model")
    return content[model_name], int(content.get("epoch", -1))


def load_checkpoint(model: nn.Module, path: Path) -> int:
    """Load an SPRC checkpoint into `model`, in the model's own shapes, types and device; returns its epoch.

    A model built on the meta device takes the tensors over. Raises InputError that lists every missing, unexpected or
    wrongly shaped name; `Qformer.cls.*` is ignored, as nothing uses it.
    """
    state, epoch = read_checkpoint(path, type(model).__name__)
    state = {name: value for name, value in state.items() if not name.startswith(UNUSED_PREFIX)}
    expected = model.state_dict()
    check_names(state, expected, path)
    check_position_ids(state, path)
    model.load_state_dict(
        {name: value.to(expected[name].dtype) for name, value in state.items()}, assign=on_meta(model)
    )
    restore_buffers(model)
    return epoch


def check_names(state: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    """Raises InputError unless names and shapes are those expected; position ids may be absent."""
    missing = [n for n in expected if n not in state and not n.endswith(POSITION_IDS)]
    unexpected = [n for n in state if n not in expected]
    shapes = [
        f"{n}: {tuple(state[n].shape)} in the file, {tuple(expected[n].shape)} in the model"
        for n in expected
        if n in state and state[n].shape != expected[n].shape
    ]
    lists = {"missing": missing, "unexpected": unexpected, "wrongly shaped": shapes}
    wrong = [f"{len(names)} {kind}: {_shorten(names)}" for kind, names in lists.items() if names]
    if wrong:
        raise InputError(f"{path} does not fit this model and backbone. " + "; ".join(wrong))


def check_position_ids(state: dict[str, Tensor], path: Path) -> None:
    """Raises InputError unless stored position ids, where there are any, are 0, 1, 2, ..."""
    for name, value in state.items():
        if name.endswith(POSITION_IDS) and not torch.equal(value.flatten(), torch.arange(value.numel())):
            raise InputError(f"{path}: {name} is not 0, 1, 2, ...: the file is not from this architecture")


def _shorten(names: list[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def on_meta(model: nn.Module) -> bool:
    """Whether the parameters have shapes but no memory yet."""
    return any(parameter.is_meta for parameter in model.parameters())


def restore_buffers(model: nn.Module) -> None:
    """Give every buffer that a state dict does not hold its value: timm's key bias, which is zero by definition."""
    for module in model.modules():
        if isinstance(getattr(module, "k_bias", None), Tensor):
            module.k_bias = torch.zeros_like(module.q_bias)


def find_weights(argument: str | None, needed: bool) -> Path | None:
    """The file of initial weights: `argument`, `$SPRC_WEIGHTS`, or the one `.pt` in `models/weights`; None for random.

    The variable and the folder hold weights of a backbone that needs some; `tiny` takes none of theirs.
    Raises InputError where weights are needed and none, or several, are found.
    """
    given = argument or (os.environ.get("SPRC_WEIGHTS") if needed else None)
    if given:
        return None if given == "random" else Path(given)
    if not needed:
        return None
    found = sorted((REPOSITORY / "models" / "weights").glob("*.pt"))
    if len(found) == 1:
        return found[0]
    problem = f"holds {len(found)} .pt files" if found else "holds no .pt file"
    raise InputError(
        f"this backbone needs pretrained weights, and {REPOSITORY / 'models' / 'weights'} {problem}: put an SPRC"
        " checkpoint there, or give --weights PATH (or set SPRC_WEIGHTS); --weights random starts from nothing"
    )
