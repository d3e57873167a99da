"""LAVIS's entry points: `load_model` and `load_model_and_preprocess`."""

import logging

import torch

from lavis.common.registry import registry
from lavis.models.blip2_models.blip2_qformer_cir_align_prompt import Blip2QformerCirAlignPrompt
from lavis.models.checkpoint import load_checkpoint
from lavis.models.model_config import load_config
from lavis.models.tokenizer import build_tokenizer
from lavis.models.weight_sources import find_weights
from lavis.processors import BlipCaptionProcessor, BlipImageEvalProcessor

__all__ = ["Blip2QformerCirAlignPrompt", "load_model", "load_model_and_preprocess"]

logger = logging.getLogger(__name__)


def load_model(
    name: str,
    model_type: str,
    is_eval: bool = False,
    device: str | torch.device = "cpu",
    weights: str | None = None,
    drop_region_proj: bool = False,
    use_region_loss: bool = False,
    region_objective: str = "tokens",
) -> Blip2QformerCirAlignPrompt:
    """A model with its weights on `device`; what was loaded is logged, and kept as `load_report`.

    Args:
        name: registered name, `blip2_cir_align_prompt`.
        model_type: `pretrain`, `pretrain_vitL`, `tiny`, or the path of a YAML file.
        is_eval: eval mode instead of train mode.
        device: on CUDA the frozen ViT is in half precision, as upstream.
        weights: a weight file or folder of any format that `checkpoint.FORMATS` knows, `random`, or None to look in
            the default places (`weight_sources.find_weights`).
        drop_region_proj: leave out a `region_proj` of another shape.
        use_region_loss, region_objective: whether `forward` returns `loss_region`, and which (`region.OBJECTIVES`).

    Raises InputError if a name is unknown, or if the weights are missing or do not fit.
    """
    model_class, config = registry.get_model_class(name), load_config(model_type)
    files = find_weights(weights, config)
    tokenizer = build_tokenizer(config.tokenizer, config.qformer.vocab_size)
    with torch.device("cpu" if files is None else "meta"):  # a file replaces these weights: no time is spent on them
        model = model_class(config, tokenizer)
    if torch.device(device).type == "cuda":
        model.use_half_precision_vit()
    report = None if files is None else load_checkpoint(model, files.main, files.vision, drop_region_proj)
    logger.info(f"weights: {report or 'random'}")
    model.load_report = report
    model.use_region_loss, model.region_objective = use_region_loss, region_objective
    return model.to(device).train(not is_eval)


def load_model_and_preprocess(
    name: str, model_type: str, is_eval: bool = False, device: str | torch.device = "cpu", **options
) -> tuple[Blip2QformerCirAlignPrompt, dict, dict]:
    """`load_model`, whose options are these, with LAVIS's processors: `(model, vis_processors, txt_processors)`."""
    model = load_model(name, model_type, is_eval, device, **options)
    image, caption = BlipImageEvalProcessor(model.config.vision.image_size), BlipCaptionProcessor()
    return model, {"train": image, "eval": image}, {"train": caption, "eval": caption}
