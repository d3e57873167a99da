"""Load weights into a model, with every name, shape, type and number checked; and save in upstream's layout.

`weight_files.py` reads files, and `weight_formats.py` tells their formats.
"""

from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lavis.models.weight_files import read_tensors as read_tensors
from lavis.models.weight_formats import FORK_ADDS as FORK_ADDS
from lavis.models.weight_formats import FORMATS, REGION_PROJ, VISION_FORMATS, State, Weights, read_weights
from lavis.models.weight_names import POSITION_IDS
from sprc.core.errors import InputError
from sprc.core.files import atomic_writer

if TYPE_CHECKING:
    from lavis.models.blip2_models.blip2_qformer_cir_align_prompt import Blip2QformerCirAlignPrompt

WORD_EMBEDDINGS = "Qformer.bert.embeddings.word_embeddings.weight"
# Types of weights. Any other type holds codes or counts: a cast would not turn them into weights.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)
SHOWN = 5  # names of a list in a message


@dataclass
class LoadReport:
    """What was loaded.

    `fresh` are the names that the file lacks, which keep their initial values. `regions` says whether it holds region
    parameters of this fork.
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


def load_checkpoint(
    model: "Blip2QformerCirAlignPrompt", path: Path, vision_path: Path | None = None, drop_region_proj: bool = False
) -> LoadReport:
    """Load a weight file into `model`, in the model's own shapes, types and device.

    A model built on the meta device takes the tensors over.

    Args:
        model: a model with `initial_values()` for what a format may lack.
        path: any of `FORMATS` but a ViT alone.
        vision_path: the ViT, if `path` holds none (LAVIS's layout).
        drop_region_proj: leave out a `region_proj` that does not fit, instead of refusing the file.

    Raises:
        InputError: a file cannot be read; a name is missing, unexpected or wrongly shaped; tensors are of a type that
            no one trains in, or hold NaN or infinite numbers. The first few are named, with their count.
    """
    weights = read_weights(path, type(model).__name__)
    if weights.format in VISION_FORMATS:
        raise InputError(f"{path} holds the vision encoder alone: give the file of the Q-Former, blip2_pretrained*.pth")
    expected, titles, notes = model.state_dict(), [weights.title], weights.notes
    state = _used(weights, model)
    vision_state: State = {}
    if not weights.holds_vision and vision_path is not None:
        vision = read_weights(vision_path)
        vision_state, vision_notes = _vision_state(vision, model)
        titles, notes = [*titles, vision.title], notes + vision_notes
    check_types(state, expected, path)
    notes = notes + _fit_region_proj(state, expected, path, drop_region_proj) + _fit_vocabulary(state, expected)
    fresh = check_names(state | vision_state, expected, path, FORMATS[weights.format].may_lack)
    check_position_ids(state, path)
    state, casts = _cast(state, expected, path)
    state |= vision_state | {name: value for name, value in model.initial_values().items() if name in fresh}
    model.load_state_dict(state, assign=on_meta(model))
    restore_buffers(model)
    regions = any(_matches(name, FORK_ADDS) for name in expected.keys() - set(fresh))
    return LoadReport(" and ".join(titles), weights.epoch, fresh, notes + casts, regions)


def _used(weights: Weights, model: "Blip2QformerCirAlignPrompt") -> State:
    """The tensors without those that the format's table ignores."""
    depth = model.config.vision.depth
    ignored = [pattern.format(depth=depth) for pattern in FORMATS[weights.format].ignored]
    return {name: value for name, value in weights.state.items() if not _matches(name, ignored)}


def _vision_state(vision: Weights, model: "Blip2QformerCirAlignPrompt") -> tuple[State, list[str]]:
    """A ViT's own file as part of the model's state, and notes on it. Raises InputError if it does not fit."""
    prefix = "visual_encoder."
    if vision.format not in VISION_FORMATS:
        raise InputError(f"{vision.path} is {FORMATS[vision.format].title}, not a vision encoder")
    state = {prefix + name: value for name, value in _used(vision, model).items()}
    expected = {name: value for name, value in model.state_dict().items() if name.startswith(prefix)}
    check_types(state, expected, vision.path)
    check_names(state, expected, vision.path, FORMATS[vision.format].may_lack)
    state, casts = _cast(state, expected, vision.path)
    return state, [f"of the ViT: {note}" for note in vision.notes + casts]


def _fit_region_proj(state: State, expected: State, path: Path, drop: bool) -> list[str]:
    """Remove a `region_proj` that does not fit from the state if `drop` says so; else raise InputError."""
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
            " `drop_region_proj` loads everything else"
        )
    for name in [name for name in state if _matches(name, [REGION_PROJ])]:
        del state[name]
    return [f"region_proj of the file dropped ({shapes})"]


def _fit_vocabulary(state: State, expected: State) -> list[str]:
    """Give `[DEC]` a row if the file has BERT's own vocabulary, which lacks it. No caption contains that token."""
    words = state.get(WORD_EMBEDDINGS)
    if words is None or words.dim() != 2 or len(words) + 1 != len(expected[WORD_EMBEDDINGS]):
        return []
    state[WORD_EMBEDDINGS] = torch.cat([words, words.new_zeros(1, words.shape[1])])
    return [f"{len(words)} word embeddings in the file, and a row of zeros for [DEC], which no caption contains"]


def check_names(state: State, expected: State, path: Path, may_lack: tuple[str, ...] = ()) -> list[str]:
    """The names that `state` lacks and may lack, without position ids.

    Raises InputError with the count, and the first few, of the other names that are missing, unexpected or wrongly
    shaped.
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
    wrong = [f"{len(names)} {kind}: {first_few(names)}" for kind, names in lists.items() if names]
    if wrong:
        hint = ""
        if missing and all(name.startswith("visual_encoder.") for name in missing):
            hint = (
                " The file holds no vision encoder: put eva_vit_g.pth, or clip_vit_L.pth for pretrain_vitL, beside it."
            )
        raise InputError(f"{path} does not fit this model and backbone. " + "; ".join(wrong) + "." + hint)
    return [name for name in absent if not name.endswith(POSITION_IDS)]


def first_few(names: list[str]) -> str:
    """The first names of a list that may be long, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _matches(name: str, patterns) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_types(state: State, expected: State, path: Path) -> None:
    """Raise InputError if a tensor is of a type or layout that no one trains in.

    Such are int8, bool, float8, complex, sparse, and tensors without memory. A cast would give other numbers.
    """
    wrong = [
        f"{name} ({_short(value.dtype)}{'' if value.layout == torch.strided else f', {value.layout}'}"
        f"{', without numbers' if value.is_meta else ''})"
        for name, value in state.items()
        if name in expected and not _of_usual_type(value, expected[name])
    ]
    if wrong:
        raise InputError(
            f"{path}: {len(wrong)} tensors are of a type that no one trains in: {first_few(wrong)}: give the weights"
            f" that these were made from, in {', '.join(map(_short, FLOATS))}"
        )


def _of_usual_type(value: Tensor, expected: Tensor) -> bool:
    # Position ids, whose values are checked, become floating numbers in a file whose every tensor was made half.
    types = FLOATS if expected.is_floating_point() else (*INTEGERS, *FLOATS)
    return value.dtype in types and value.layout == torch.strided and not value.is_meta


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _cast(state: State, expected: State, path: Path) -> tuple[State, list[str]]:
    """The tensors in the model's types, each with memory of its own, and notes on what was cast.

    Raises InputError if a tensor holds NaN or an infinite number, or one beyond the model's type.
    """
    check_finite(state, path)
    own = _separate(state)
    cast = {name: value.to(expected[name].dtype) for name, value in own.items()}
    pairs = {name: f"{_short(value.dtype)} -> {_short(cast[name].dtype)}" for name, value in own.items()}
    changed = {name: pair for name, pair in pairs.items() if cast[name].dtype != own[name].dtype}
    beyond = [f"{name} ({pair})" for name, pair in changed.items() if not _is_finite(cast[name])]
    if beyond:
        raise InputError(
            f"{path}: {len(beyond)} tensors hold numbers beyond the model's type: {first_few(beyond)}: use `device`"
            " cpu, where the ViT is in float32, or other weights"
        )
    return cast, [f"{count} tensors {pair}" for pair, count in Counter(changed.values()).most_common()]


def check_finite(state: State, path: Path) -> None:
    """Raise InputError if a tensor holds NaN or an infinite number."""
    bad = [name for name, value in state.items() if not _is_finite(value)]
    if bad:
        raise InputError(
            f"{path} is bad: {len(bad)} tensors hold NaN or infinite numbers: {first_few(bad)}: give the weights of an"
            " earlier epoch, or download or copy the file again"
        )


def _is_finite(value: Tensor) -> bool:
    """By the least and the greatest number, which are NaN if any is: on a CPU 100 times as fast as torch.isfinite."""
    return value.numel() == 0 or all(bool(torch.isfinite(bound)) for bound in torch.aminmax(value.detach()))


def _separate(state: State) -> State:
    """The tensors, each with memory of its own: tensors that a file ties would be trained as one."""
    own, places = {}, set()
    for name, value in state.items():
        shared = value.data_ptr() in places or not value.is_contiguous()
        own[name] = value.detach().clone(memory_format=torch.contiguous_format) if shared else value.detach()
        places.add(value.data_ptr())
    return own


def check_position_ids(state: State, path: Path) -> None:
    """Raise InputError if the file has position ids that are not 0, 1, 2, ..."""
    for name, value in state.items():
        if name.endswith(POSITION_IDS) and value.flatten().tolist() != list(range(value.numel())):
            raise InputError(f"{path}: {name} is not 0, 1, 2, ...: the file is not from this architecture")


def on_meta(model: nn.Module) -> bool:
    """Whether the parameters have shapes but no memory yet."""
    return any(parameter.is_meta for parameter in model.parameters())


def restore_buffers(model: nn.Module) -> None:
    """Give every buffer that a state dict does not hold its value: timm's key bias, which is zero by definition."""
    for module in model.modules():
        if isinstance(getattr(module, "k_bias", None), Tensor):
            module.k_bias = torch.zeros_like(module.get_parameter("q_bias"))


def save_model(model: nn.Module, epoch: int, path: Path) -> None:
    """Write `{"epoch", class name: state to save}` to `path`; a file there is replaced only once all is written."""
    with atomic_writer(path) as file:
        torch.save({"epoch": epoch, type(model).__name__: state_to_save(model)}, file)


def state_to_save(model: nn.Module) -> State:
    """The state dict. If the model does not use the region parameters they are left out: upstream's names remain."""
    unused = () if model.use_region_loss else FORK_ADDS
    return {name: value for name, value in model.state_dict().items() if not _matches(name, unused)}
