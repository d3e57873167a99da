"""Compare ViTs and Q-Former with those of the registry's salesforce-lavis, at a tiny size, in its own environment."""

import argparse
import shutil
import subprocess
from pathlib import Path

from sprc.core.command_line import HelpFormatter, run_main, user_path
from sprc.core.errors import InputError
from sprc.core.places import REPOSITORY

DATA = REPOSITORY / "roi_align_integration" / "data"
WITNESS = Path(__file__).with_name("lavis_witness.py")
LAVIS = "salesforce-lavis==1.0.2"
# What its three modules import, within LAVIS's own pins; torch of today runs them.
NEEDED = ("transformers>=4.25,<4.27", "timm==0.4.12", "torch", "torchvision", "numpy<2")
PYTHONS = ("python3.11", "python3.10", "python3.9")  # transformers of that time has no build for a later one
TOLERANCE = 1e-4


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--environment", type=user_path, default=DATA / "lavis_env", help="made if it is not there")
    return parser


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print and return the largest difference of each output. Raises InputError if one is above the tolerance."""
    args = build_parser().parse_args(argv)
    python = make_environment(args.environment)
    inputs, outputs = DATA / "lavis_inputs.pt", DATA / "lavis_outputs.pt"
    ours, mask = write_case(inputs)
    subprocess.run([python, str(WITNESS), str(inputs), str(outputs)], check=True)
    differences = compare(ours, mask, outputs)
    for name, difference in differences.items():
        print(f"  {name:<12} {difference:.1e}")
    if max(differences.values()) > TOLERANCE:
        raise InputError(f"an output differs from LAVIS's by more than {TOLERANCE}")
    return differences


def make_environment(folder: Path) -> str:
    """A virtual environment with LAVIS, without the packages that its other models need; its Python's path."""
    python = folder / "bin" / "python"
    if not (folder / "complete").is_file():
        base = next((found for found in map(shutil.which, PYTHONS) if found), None)
        if base is None:
            raise InputError(f"LAVIS's packages need one of {', '.join(PYTHONS)} on PATH: install one")
        print(f"making {folder} with {base}: {LAVIS} and {', '.join(NEEDED)}", flush=True)
        subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, *NEEDED], check=True)
        subprocess.run([*install, "--no-deps", LAVIS], check=True)
        (folder / "complete").touch()
    return str(python)


def write_case(path: Path) -> tuple:
    """Write random weights and inputs for the witness; returns this project's outputs on them, and the text mask."""
    import torch

    from lavis.models.blip2_models.Qformer import Qformer
    from lavis.models.eva_vit import build_vision_encoder
    from lavis.models.model_config import QformerConfig, VisionConfig

    torch.manual_seed(0)
    images = torch.randn(2, 3, 56, 56)
    case, ours = {"images": images}, {}
    for encoder, ratio in (("eva_clip_g", 4.3637), ("clip_L", 4.0)):
        config = VisionConfig(encoder, 56, 14, 48, 3, 4, ratio)
        vit = randomize(build_vision_encoder(config))
        case[encoder] = {"sizes": vars(config), "state": vit.state_dict()}
        with torch.no_grad():
            ours[encoder] = vit.forward_features(images)
    config = QformerConfig(64, 4, 4, 128, 300, num_query_token=32, dropout=0.0)
    qformer = randomize(Qformer(config, 48)).eval()
    ids = torch.randint(5, 300, (2, 12))
    mask = (torch.arange(12) < torch.tensor([[12], [7]])).long()
    queries, embeds = 0.5 * torch.randn(1, 32, 64), torch.randn(2, 17, 48)
    case["qformer"] = {
        "sizes": vars(config),
        "state": qformer.state_dict(),
        "input_ids": ids,
        "text_mask": mask,
        "queries": queries,
        "image_embeds": embeds,
    }
    with torch.no_grad():
        batch = queries.expand(2, -1, -1)
        ours["fusion"] = qformer.fuse(batch, ids, mask, embeds)
        ours["target"] = qformer.encode_image(batch, embeds)
        ours["text"] = qformer.encode_prompted_text(queries.new_zeros(2, 0, 64), ids, mask)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(case, path)
    return ours, mask


def randomize(module):
    """Add noise to every parameter, so that none is at a value that hides it."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return module


def compare(ours: dict, mask, path: Path) -> dict[str, float]:
    """Largest difference of every output; of text only over what is not padding, `mask` (B, L)."""
    import torch

    differences = {}
    for name, expected in torch.load(path, weights_only=True).items():
        difference = (ours[name] - expected).abs().amax(dim=-1)  # (B, tokens)
        if name in ("fusion", "text"):
            difference[:, -mask.shape[1] :][mask == 0] = 0  # nothing reads what comes after the text
        differences[name] = difference.max().item()
    return differences


if __name__ == "__main__":
    run_main(main)
