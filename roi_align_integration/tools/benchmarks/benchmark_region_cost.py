"""What regions cost: loading, forward pass and training step with and without them, measured side by side."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sprc.core.command_line import HelpFormatter, positive_int, run_main
from sprc.demo.dataset import DemoSettings, make_demo_dataset
from sprc.training.config import REGION_WEIGHTS, TrainConfig

DEFAULT = TrainConfig(dataset="CIRR").region_objective


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--backbone", default="tiny", help="tiny, pretrain, pretrain_vitL; always of random weights")
    parser.add_argument("--region-objective", choices=tuple(REGION_WEIGHTS), default=DEFAULT, help="which loss")
    parser.add_argument("--batch-size", type=positive_int, default=32, help="triplets in a step")
    parser.add_argument(
        "--repeats", type=positive_int, default=15, help="of each measurement, in turn with and without"
    )
    parser.add_argument("--cached", action="store_true", help="with frozen features from a cache instead of images")
    parser.add_argument("--threads", type=positive_int, help="of the CPU (default: torch's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Print the medians and the median of the ratios of neighbours; returns the ratios."""
    args = build_parser().parse_args(argv)
    import torch

    from sprc.core.runtime import choose_runtime

    if args.threads:
        torch.set_num_threads(args.threads)
    runtime = choose_runtime(args.device)
    model = build_model(args.backbone, args.region_objective, runtime.device)
    source = "cached" if args.cached else "plain"
    print(f"{args.backbone}, {args.region_objective}, batch {args.batch_size}, {source}, {runtime.device},"
          f" {torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        images = 3 * args.batch_size
        settings = DemoSettings(images, args.batch_size, val_images=6, val_triplets=2, test_images=6, test_triplets=2)
        make_demo_dataset(Path(folder), settings)
        loaders = [loading(Path(folder), args, model, boxes) for boxes in (False, True)]
        named = measurements(model, loaders, runtime).items()
        return {name: report(name, measure, args.repeats, runtime.device) for name, measure in named}


def build_model(backbone: str, objective: str, device):
    """A model with random weights and the small vocabulary."""
    from sprc.demo.model import random_model_on  # heavy: torch

    model = random_model_on(device, backbone).train()
    model.region_objective = objective
    return model


def loading(folder: Path, args: argparse.Namespace, model, with_boxes: bool):
    """The images, and the function that loads one batch of triplets, in this process."""
    from sprc.benchmarks.cirr import CIRR
    from sprc.data.batches import collate_fn
    from sprc.data.feature_cache_build import use_feature_cache
    from sprc.data.options import BoxOptions
    from sprc.data.preprocess import targetpad_transform

    boxes = BoxOptions(folder / "boxes" / "cirr_boxes_train.json") if with_boxes else None
    preprocess = targetpad_transform(dim=model.config.vision.image_size)
    triplets = CIRR(folder).training_triplets(preprocess, boxes)
    cache = str(folder / "cache") if args.cached else "off"
    config = TrainConfig(dataset="CIRR", feature_cache=cache, num_workers=0)
    use_feature_cache(config, model, model.device, triplets.images)
    return triplets.images, lambda: collate_fn([triplets[i] for i in range(args.batch_size)])


def measurements(model, loaders: list, runtime) -> dict[str, Callable[[bool], None]]:
    """Name -> a function that does the thing once, without or with regions."""
    import torch

    from sprc.training.samples import SampleMaker

    samples = [SampleMaker(list, str, images, runtime.device)(load()) for images, load in loaders]
    parameters = [p for n, p in model.named_parameters() if not n.startswith("visual_encoder.")]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)

    def forward(regions: bool):
        model.use_region_loss = regions
        with runtime.autocast():
            return model(samples[regions])

    def evaluate(regions: bool) -> None:
        with torch.no_grad():
            forward(regions)

    def train(regions: bool) -> None:
        optimizer.zero_grad(set_to_none=True)
        sum(forward(regions).values()).backward()
        optimizer.step()

    return {"loading": lambda regions: loaders[regions][1](), "forward": evaluate, "training step": train}


def report(name: str, measure: Callable[[bool], None], repeats: int, device) -> float:
    """Measure in turn without and with regions; the ratio is the median of those of neighbours."""
    from machine import wait_for  # heavy: torch

    seconds: list[list[float]] = [[], []]
    for turn in range(repeats + 1):
        for regions in (False, True):
            start = time.perf_counter()
            measure(regions)
            wait_for(device)
            if turn:  # the first turn warms up
                seconds[regions].append(time.perf_counter() - start)
    ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
    without, with_regions = (1000 * statistics.median(times) for times in seconds)
    print(f"  {name:<14} {without:8.1f} ms without, {with_regions:8.1f} ms with regions: {100 * (ratio - 1):+.1f} %")
    return ratio


if __name__ == "__main__":
    run_main(main)
