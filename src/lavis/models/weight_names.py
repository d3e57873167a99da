"""Names of weights as tables, in both directions: this project's modules, upstream's checkpoints, the hub's BLIP-2.

The modules translate as they save and load: `model.state_dict()` and `model.load_state_dict()` speak upstream's names.
"""

import torch
from torch import Tensor, nn

from sprc.core.errors import InputError

Names = tuple[tuple[str, str], ...]

# Pairs (left, right) of parts of a name, tried in order; no part contains what an earlier pair has put in.
QFORMER_NAMES: Names = (  # this project, upstream
    ("word_embeddings.", "bert.embeddings.word_embeddings."),
    ("position_embeddings.", "bert.embeddings.position_embeddings."),
    ("model.layernorm.", "bert.embeddings.LayerNorm."),
    ("model.encoder.", "bert.encoder."),
    (".crossattention.attention.", ".crossattention.self."),
    (".attention.attention.", ".attention.self."),
)
CLIP_NAMES: Names = (  # timm, OpenAI's CLIP, whose names upstream keeps
    ("cls_token", "class_embedding"),
    ("pos_embed", "positional_embedding"),
    ("patch_embed.proj.", "conv1."),
    ("norm_pre.", "ln_pre."),
    ("blocks.", "transformer.resblocks."),
    (".attn.qkv.", ".attn.in_proj_"),
    (".attn.proj.", ".attn.out_proj."),
    (".norm1.", ".ln_1."),
    (".norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
HUB_NAMES: Names = (  # upstream with EVA-CLIP-g, transformers' Blip2ForImageTextRetrieval
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.blocks.", "vision_model.encoder.layers."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    ("ln_vision.", "vision_model.post_layernorm."),
    ("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm."),
    ("Qformer.bert.embeddings.", "embeddings."),
    ("Qformer.bert.encoder.", "qformer.encoder."),
    (".crossattention.self.", ".crossattention.attention."),
    (".attention.self.", ".attention.attention."),
    ("vision_proj.", "vision_projection."),
    ("text_proj.", "text_projection."),
)
POSITION_IDS = "bert.embeddings.position_ids"
# Parameters of upstream for which the hub's model has no place.
NOT_ON_THE_HUB = ("prompt_tokens", "temp")
# CLIP stores them without the axes of 1 that timm gives them.
CLIP_SQUEEZED = {"class_embedding": (0, 0), "positional_embedding": (0,)}


def to_right(name: str, names: Names) -> str:
    """A name of the left side of a table -> the right side's."""
    for left, right in names:
        name = _replace(name, left, right)
    return name


def to_left(name: str, names: Names) -> str:
    """A name of the right side of a table -> the left side's."""
    for left, right in names:
        name = _replace(name, right, left)
    return name


def _replace(name: str, old: str, new: str) -> str:
    """Replace a dotted part at the start of the name, or anywhere if the part itself begins with a dot."""
    if old.startswith("."):
        return name.replace(old, new)
    return new + name[len(old) :] if name.startswith(old) else name


def speak_upstream_qformer(qformer: nn.Module) -> None:
    """Make a Q-Former save and load under upstream's names."""
    qformer.register_state_dict_post_hook(_save_qformer)
    qformer.register_load_state_dict_pre_hook(_load_qformer)


def _save_qformer(module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    """Upstream's names, and the position ids that upstream stores as a buffer."""
    for key in _own_keys(state_dict, prefix):
        state_dict[prefix + to_right(key, QFORMER_NAMES)] = state_dict.pop(prefix + key)
    positions = module.get_parameter("position_embeddings.weight")
    state_dict[prefix + POSITION_IDS] = torch.arange(positions.shape[0], device=positions.device)[None]


def _load_qformer(module: nn.Module, state_dict: dict, prefix: str, *_unused) -> None:
    """The way back. Position ids are taken off: they are arange by construction; nothing uses the head `cls`."""
    state_dict.pop(prefix + POSITION_IDS, None)
    for key in _own_keys(state_dict, prefix):
        value = state_dict.pop(prefix + key)
        if not key.startswith("cls."):
            state_dict[prefix + to_left(key, QFORMER_NAMES)] = value


def speak_upstream_clip(vit: nn.Module) -> None:
    """Make timm's CLIP ViT save and load under OpenAI's names and shapes."""
    vit.register_state_dict_post_hook(_save_clip)
    vit.register_load_state_dict_pre_hook(_load_clip)


def _save_clip(module: nn.Module, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    for key in _own_keys(state_dict, prefix):
        name, value = to_right(key, CLIP_NAMES), state_dict.pop(prefix + key)
        state_dict[prefix + name] = value[CLIP_SQUEEZED.get(name, ())]


def _load_clip(module: nn.Module, state_dict: dict, prefix: str, *_unused) -> None:
    for key in _own_keys(state_dict, prefix):
        value = state_dict.pop(prefix + key)
        state_dict[prefix + to_left(key, CLIP_NAMES)] = value[(None,) * len(CLIP_SQUEEZED.get(key, ()))]


def _own_keys(state_dict: dict, prefix: str) -> list[str]:
    return [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]


def from_hub(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the hub's BLIP-2 under upstream's names; the query, key and value bias becomes two.

    Raises InputError if a key bias is not zero: EVA-CLIP has none.
    """
    converted = {}
    for key, value in state.items():
        name = to_left(key, HUB_NAMES)
        if not name.endswith(".attn.qkv.bias"):
            converted[name] = value
            continue
        query, middle, values = value.chunk(3)
        if middle.any():
            raise InputError(f"{key} has a bias for keys, which EVA-CLIP does not: the file is of another architecture")
        stem = name.removesuffix("qkv.bias")
        converted |= {stem + "q_bias": query, stem + "v_bias": values}
    return converted


def to_hub(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of upstream's names with EVA-CLIP-g -> the hub's; `NOT_ON_THE_HUB` and unused heads are left out."""
    converted = {}
    for key, value in state.items():
        if key in NOT_ON_THE_HUB or key.endswith(POSITION_IDS) or key.startswith(("Qformer.cls.", "region_")):
            continue
        if key.endswith(".q_bias"):
            bias = torch.cat([value, torch.zeros_like(value), state[key.removesuffix("q_bias") + "v_bias"]])
            converted[to_right(key.removesuffix("q_bias") + "qkv.bias", HUB_NAMES)] = bias
        elif not key.endswith(".v_bias"):
            converted[to_right(key, HUB_NAMES)] = value
    return converted
