"""A folder of numbers recorded from upstream SPRC, and this project's model built to its sizes."""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from lavis.models.blip2_models.blip2_qformer_cir_align_prompt import Blip2QformerCirAlignPrompt
from lavis.models.blip2_models.frozen_features import FrozenFeatures
from lavis.models.model_config import ModelConfig, QformerConfig, VisionConfig
from lavis.models.tokenizer import build_tokenizer


@dataclass
class Reference:
    """One recorded folder."""

    folder: Path
    meta: dict
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    grads: dict[str, Tensor]

    @property
    def captions(self) -> list[str]:
        return self.meta["captions"]  # recorded without the caption processor


def load_reference(folder: Path) -> Reference:
    """Raises FileNotFoundError where a file is missing."""
    tensors = (load_file(folder / f"{n}.safetensors") for n in ("weights", "inputs", "outputs", "grads"))
    return Reference(folder, json.loads((folder / "meta.json").read_text()), *tensors)


def reference_config(reference: Reference) -> ModelConfig:
    meta, vit, qformer = reference.meta, reference.meta["config"]["vit"], reference.meta["config"]["qformer"]
    encoder = {"eva": "eva_clip_g", "clip": "clip_L"}.get(vit["kind"], vit["kind"])
    vision = VisionConfig(
        encoder,
        meta["image_size"],
        meta["patch_size"],
        vit["embed_dim"],
        vit["depth"],
        vit["num_heads"],
        meta["vit_mlp_ratio"],
    )
    sizes = {name: size for name, size in qformer.items() if name != "base_vocab_size"}
    config = meta["config"]
    return ModelConfig(
        vision,
        QformerConfig(**sizes, dropout=0.0),
        config["embed_dim"],
        str(reference.folder / "vocab.txt"),
        config["max_txt_len"],
    )


def build_model(reference: Reference) -> Blip2QformerCirAlignPrompt:
    """In train mode, without dropout, padded as upstream."""
    config = reference_config(reference)
    model = Blip2QformerCirAlignPrompt(config, build_tokenizer(config.tokenizer, config.qformer.vocab_size))
    model.text_padding = "max_length"
    model.load_state_dict(
        {n: w for n, w in reference.weights.items() if not n.startswith("Qformer.cls.")}, strict=False
    )
    return model.train()


def samples_of(reference: Reference) -> dict:
    """The recorded batch; if the images of some samples are not at hand, the recorded output of the ViT."""
    image: Tensor | FrozenFeatures
    target: Tensor | FrozenFeatures
    if len(reference.inputs["reference"]) == len(reference.meta["captions"]):
        image, target = (reference.inputs[name].float() for name in ("reference", "target"))
    else:
        image, target = (FrozenFeatures(reference.outputs[f"{name}.visual_encoder"]) for name in ("ref", "target"))
    return {"image": image, "target": target, "text_input": reference.captions}
