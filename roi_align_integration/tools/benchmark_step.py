"""A training step as upstream does it, and one from the feature cache: seconds and peak memory, a process each."""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "src"))

from make_demo_dataset import DemoSettings, make_demo_dataset  # noqa: E402

from utils import HelpFormatter, positive_int, run_main  # noqa: E402

DATA = REPOSITORY / "roi_align_integration" / "data" / "benchmark_step"
MODES = ("plain", "plain+regions", "cached", "cached+regions")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--backbone", default="pretrain", help="pretrain, pretrain_vitL, tiny; of random weights")
    parser.add_argument("--batch-size", type=positive_int, default=4, help="triplets in a step")
    parser.add_argument("--steps", type=positive_int, default=5, help="measured, after one that warms up")
    parser.add_argument("--threads", type=positive_int, default=2, help="of the CPU")
    parser.add_argument("--folder", type=Path, default=DATA, help="for images, weights (4.7 GB) and cache; kept")
    parser.add_argument("--mode", choices=("prepare", *MODES), help=argparse.SUPPRESS)  # in a process of its own
    return parser


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Print and return seconds and MiB of both steps."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    if args.mode:
        print(json.dumps(run_mode(args)))
        return {}
    found = {}
    for mode in ("prepare", *MODES):
        command = [sys.executable, __file__, *argv, "--mode", mode]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[mode] = json.loads(answer.splitlines()[-1])
    print(f"{args.backbone}, batch {args.batch_size}, float32, {args.threads} CPU threads, median of {args.steps}:")
    for mode in MODES:
        print(f"  {mode:<14} {found[mode]['seconds']:7.2f} s a step, {found[mode]['mib'] / 1024:5.2f} GiB at most")
    print(f"  {found['plain']['seconds'] / found['cached']['seconds']:.1f} times as fast from the cache")
    return found


def run_mode(args: argparse.Namespace) -> dict[str, float]:
    import torch

    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    settings = DemoSettings(12, 2 * args.batch_size, val_images=6, val_triplets=2, test_images=6, test_triplets=2)
    make_demo_dataset(args.folder / "images", settings)
    if args.mode == "prepare":
        write_weights(args)
    model, config, dataset = open_run(args)
    if args.mode == "prepare":
        return {}
    return {"seconds": median_step(model, config, dataset, args), "mib": peak_mib()}


def write_weights(args: argparse.Namespace) -> None:
    """Random weights as a checkpoint, as a user has them: the frozen ViT is then read from disk where it is used."""
    from lavis.models.checkpoint import save_model

    path = args.folder / f"{args.backbone}.pt"
    if not path.is_file():
        save_model(random_model(args.backbone), 0, path)


def random_model(backbone: str, on: str = "cpu"):
    """The model with the small vocabulary, so that nothing has to be downloaded."""
    from dataclasses import replace

    import torch

    from lavis.models import Blip2QformerCirAlignPrompt
    from lavis.models.model_config import load_config
    from lavis.models.tokenizer import build_tokenizer

    config = replace(load_config(backbone), tokenizer="tiny_vocab.txt")
    torch.manual_seed(0)
    with torch.device(on):
        return Blip2QformerCirAlignPrompt(config, build_tokenizer(config.tokenizer, config.qformer.vocab_size))


def open_run(args: argparse.Namespace):
    """(model, configuration, triplets), from the cache or not, with regions or not, as the mode says."""
    import torch

    from data_utils import CIRRDataset
    from feature_cache import use_feature_cache
    from lavis.models.checkpoint import load_checkpoint
    from preprocess import targetpad_transform
    from train_config import TrainConfig

    cached, regions = not args.mode.startswith("plain"), args.mode.endswith("+regions")
    box_file = args.folder / "images" / "boxes" / "cirr_boxes_train.json" if regions else None
    model = random_model(args.backbone, "meta")
    load_checkpoint(model, args.folder / f"{args.backbone}.pt")
    model.text_padding = "longest" if cached else "max_length"
    cache = str(args.folder / "cache") if cached else "off"
    config = TrainConfig("CIRR", batch_size=args.batch_size, num_workers=0, feature_cache=cache,
                         use_region_loss=regions, box_file=box_file)  # fmt: skip
    model.region_objective, model.use_region_loss = config.region_objective, regions
    preprocess = targetpad_transform(dim=model.config.vision.image_size)
    dataset = CIRRDataset("train", "relative", preprocess, box_file, args.folder / "images")
    use_feature_cache(config, model, torch.device("cpu"), dataset)
    return model.train(), config, dataset


def median_step(model, config, dataset, args: argparse.Namespace) -> float:
    """Loading, forward, backward and optimizer of one batch: the median of `--steps`."""
    import torch

    import engine
    from data_utils import TrainingTriplets, collate_fn
    from lavis.processors import BlipCaptionProcessor
    from training_run import sample_maker

    runtime = engine.Runtime(torch.device("cpu"), torch.float32)
    optimization = engine.Optimization(model, config, 10, runtime)
    triplets = TrainingTriplets(dataset)
    make_samples = sample_maker(BlipCaptionProcessor(), list, lambda images: dataset.on_device(images, runtime.device))
    seconds = []
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        samples = make_samples(collate_fn([triplets[i] for i in range(args.batch_size)]))
        optimization.step(engine.total_loss(model(samples), config.loss_weights()))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def peak_mib() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    run_main(main)
