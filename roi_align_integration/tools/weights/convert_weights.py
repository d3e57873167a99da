"""Convert weights between SPRC, LAVIS and the hub: any format that the project reads, to one of three."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sprc.core.command_line import HelpFormatter, run_main, user_path
from sprc.core.errors import InputError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("input", help="weight file, or folder of the hub; a LAVIS file finds its ViT beside it")
    parser.add_argument("output", type=user_path, help="file to write; for --format hub a folder")
    parser.add_argument("--backbone", default="pretrain", help="pretrain, pretrain_vitL, or a model's YAML file")
    parser.add_argument(
        "--format",
        choices=("sprc", "safetensors", "hub"),
        default="sprc",
        help="sprc: upstream's .pt; safetensors: upstream's names; hub: transformers' Blip2ForImageTextRetrieval,"
        " without prompt_tokens, temp and the region parameters, which it has no place for",
    )
    parser.add_argument("--drop-region-proj", action="store_true", help="leave out a region_proj of another shape")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Load, check and write. Raises InputError if the input does not fit, or the output is there already."""
    args = build_parser().parse_args(argv)
    if args.output.exists():
        raise InputError(f"{args.output} exists: remove it, or give another name")
    from lavis.models import load_model  # heavy: torch

    model = load_model(
        "blip2_cir_align_prompt", args.backbone, weights=args.input, drop_region_proj=args.drop_region_proj
    )
    # What is saved of a model that uses no regions are upstream's names alone.
    model.use_region_loss = not args.drop_region_proj and model.load_report is not None and model.load_report.regions
    {"sprc": write_sprc, "safetensors": write_safetensors, "hub": write_hub}[args.format](model, args.output)
    print(f"written: {args.output}")


def write_sprc(model, path: Path) -> None:
    from lavis.models.checkpoint import save_model

    save_model(model, -1, path)


def write_safetensors(model, path: Path) -> None:
    from safetensors.torch import save_file

    from lavis.models.checkpoint import state_to_save

    with written_whole(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in state_to_save(model).items()}, partial)


def write_hub(model, folder: Path) -> None:
    """A folder that `Blip2ForImageTextRetrieval.from_pretrained` opens."""
    from safetensors.torch import save_file

    from lavis.models.weight_names import to_hub

    config = hub_config(model)
    state = {name: tensor.contiguous() for name, tensor in to_hub(model.state_dict()).items()}
    with written_whole(folder) as partial:
        partial.mkdir()
        save_file(state, partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """As `atomic_path`; the faults of a disk come as safetensors' own errors."""
    from safetensors import SafetensorError

    from sprc.core.files import atomic_path

    try:
        with atomic_path(path) as partial:
            yield partial
    except SafetensorError as error:
        raise InputError(f"{path} cannot be written ({error}): free some space, or give another path") from error


def hub_config(model) -> dict:
    """The hub's `config.json`. Raises InputError if transformers' BLIP-2 has no such ViT."""
    vision, qformer = model.config.vision, model.config.qformer
    if vision.encoder != "eva_clip_g":
        raise InputError("transformers' BLIP-2 has only the ViT of EVA-CLIP-g: write --format sprc or safetensors")
    return {
        "architectures": ["Blip2ForImageTextRetrieval"],
        "model_type": "blip-2",
        "num_query_tokens": qformer.num_query_token,
        "image_text_hidden_size": model.config.embed_dim,
        "vision_config": {
            "model_type": "blip_2_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": model.visual_encoder.blocks[0].mlp.fc1.out_features,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
        "qformer_config": {
            "model_type": "blip_2_qformer",
            "vocab_size": qformer.vocab_size,
            "hidden_size": qformer.hidden_size,
            "num_hidden_layers": qformer.num_hidden_layers,
            "num_attention_heads": qformer.num_attention_heads,
            "intermediate_size": qformer.intermediate_size,
            "max_position_embeddings": qformer.max_position_embeddings,
            "cross_attention_frequency": qformer.cross_attention_freq,
            "encoder_hidden_size": vision.width,
            "use_qformer_text_input": True,
        },
    }


if __name__ == "__main__":
    run_main(main)
