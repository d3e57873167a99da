"""A model of random weights: checks and measurements that need no download build it."""

from dataclasses import replace

import torch

from lavis.models import Blip2QformerCirAlignPrompt
from lavis.models.model_config import load_config
from lavis.models.tokenizer import build_tokenizer


def random_model(backbone: str = "tiny", on: str = "cpu") -> Blip2QformerCirAlignPrompt:
    """A model of the same random weights every time, built on the device `on`, with the vocabulary of this package.

    Raises InputError for an unknown backbone.
    """
    config = replace(load_config(backbone), tokenizer="tiny_vocab.txt")
    tokenizer = build_tokenizer(config.tokenizer, config.qformer.vocab_size)
    torch.manual_seed(0)
    with torch.device(on):
        return Blip2QformerCirAlignPrompt(config, tokenizer)


def random_model_on(device: str | torch.device, backbone: str = "tiny") -> Blip2QformerCirAlignPrompt:
    """The same model, moved to a device: on a GPU with the ViT in half precision, as in a training."""
    model = random_model(backbone)
    if torch.device(device).type == "cuda":
        model.use_half_precision_vit()
    return model.to(device)
