"""Runs inside the environment that `compare_with_lavis.py` makes: LAVIS's own ViTs and Q-Former on given weights.

`lavis/__init__.py` imports everything that LAVIS has, with some forty packages. The three modules that are needed here
are imported without it: their parent packages are entered as empty ones that know only their own folder.
"""

import importlib
import importlib.util
import sys
import types
from functools import partial
from pathlib import Path

import torch
from torch import nn

PACKAGES = ("lavis", "lavis.common", "lavis.models", "lavis.models.blip2_models")


def lavis_module(name: str):
    """A module of the installed LAVIS, without what the `__init__` files of its packages import."""
    if "lavis" not in sys.modules:
        root = Path(importlib.util.find_spec("lavis").submodule_search_locations[0])
        for package in PACKAGES:
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = [str(root.joinpath(*package.split(".")[1:]))]
    return importlib.import_module(name)


def eva_vit(sizes: dict) -> nn.Module:
    """LAVIS's EVA-CLIP ViT, built as its `create_eva_vit_g` does, at other sizes."""
    return lavis_module("lavis.models.eva_vit").VisionTransformer(
        img_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        use_mean_pooling=False,
        embed_dim=sizes["width"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        mlp_ratio=sizes["mlp_ratio"],
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )


def clip_vit(sizes: dict) -> nn.Module:
    """LAVIS's CLIP ViT. Its checkpointing comes from fairscale, is off here, and is not installed for it."""
    for name in ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint"):
        sys.modules.setdefault(name, types.ModuleType(name))
    wrapper = types.ModuleType("fairscale.nn.checkpoint.checkpoint_activations")
    wrapper.checkpoint_wrapper = None
    sys.modules.setdefault(wrapper.__name__, wrapper)
    return lavis_module("lavis.models.clip_vit").VisionTransformer(
        sizes["image_size"], sizes["patch_size"], sizes["width"], sizes["depth"] + 1, sizes["heads"], False
    )


def qformer(sizes: dict, vision_width: int) -> nn.Module:
    """LAVIS's Q-Former, configured as its `init_Qformer` does, without dropout."""
    from transformers import BertConfig

    config = BertConfig(
        **{name: sizes[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
        **{name: sizes[name] for name in ("intermediate_size", "vocab_size", "max_position_embeddings")},
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.encoder_width, config.add_cross_attention = vision_width, True
    config.cross_attention_freq, config.query_length = sizes["cross_attention_freq"], sizes["num_query_token"]
    return lavis_module("lavis.models.blip2_models.Qformer").BertLMHeadModel(config)


def load(module: nn.Module, state: dict, unused: tuple = ()) -> nn.Module:
    """Load all of `state`, and leave nothing of the module but `unused` as it was."""
    report = module.load_state_dict(state, strict=False)
    missing = [name for name in report.missing_keys if not name.startswith(unused)]
    if missing or report.unexpected_keys:
        raise SystemExit(f"LAVIS's module lacks {missing} and does not know {report.unexpected_keys}")
    return module.eval()


@torch.no_grad()
def main(inputs: Path, outputs: Path) -> None:
    """Run every case of `inputs` through LAVIS's modules and write what they give."""
    given = torch.load(inputs, weights_only=True)
    found = {}
    for name, build in (("eva_clip_g", eva_vit), ("clip_L", clip_vit)):
        vit = load(build(given[name]["sizes"]), given[name]["state"])
        found[name] = vit(given["images"])
    case = given["qformer"]
    bert = load(qformer(case["sizes"], case["image_embeds"].shape[-1]), case["state"], ("cls.",)).bert
    image = {
        "encoder_hidden_states": case["image_embeds"],
        "encoder_attention_mask": torch.ones(case["image_embeds"].shape[:2], dtype=torch.long),
    }
    queries = case["queries"].expand(len(case["input_ids"]), -1, -1)
    both = torch.cat([torch.ones(queries.shape[:2], dtype=torch.long), case["text_mask"]], dim=1)
    found["fusion"] = bert(case["input_ids"], query_embeds=queries, attention_mask=both, **image)[0]
    found["target"] = bert(query_embeds=queries, **image)[0]
    found["text"] = bert(case["input_ids"], attention_mask=case["text_mask"])[0]
    torch.save(found, outputs)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
