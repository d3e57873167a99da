"""The configuration of an evaluation, and the groups of settings that a training shares with it."""

from argparse import ArgumentParser
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sprc.benchmarks import find_benchmark, known_names
from sprc.core.options import add_flags, check_options, option
from sprc.data.options import MAX_REGIONS, BoxOptions, CacheOptions

if TYPE_CHECKING:
    from sprc.benchmarks.benchmark import Benchmark


def is_yaml(backbone: str) -> bool:
    """Whether a backbone is the path of a YAML file, and no name."""
    return backbone.endswith((".yaml", ".yml"))


@dataclass(frozen=True)
class Scoring:
    """How queries are scored: images or queries at a time, processes that load images, and the bound on temporaries.

    `save_memory` keeps the gallery's features in CPU memory.
    """

    batch_size: int = 128
    num_workers: int = 4
    memory_mib: float = 256
    save_memory: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How images are read."""

    transform: str = option("how an image is padded", default="targetpad", choices=("targetpad", "squarepad"))
    target_ratio: float = option("targetpad: longer images are padded to this ratio", default=1.25)
    num_workers: int = option("processes that load images", default=4, least=0)


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions:
    """A benchmark and its folder."""

    dataset: str = option(f"{known_names()}, in any case", default=...)
    data_path: Path | None = option("folder of the dataset (default: cirr_dataset or fashionIQ_dataset, here)")
    gallery: str | None = option(
        "FashionIQ: rank every image of the split list, or with captions only those that captions name (default: split)"
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions(ImageOptions, BenchmarkOptions):
    """A benchmark, its folder, and how its images are read."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model is built."""

    blip_model_name: str = option("registered name of the model", default="blip2_cir_align_prompt")
    backbone: str = option(
        "pretrain, pretrain_vitL, tiny, or the path of a model's YAML file",
        default="pretrain",
        metavar="NAME|FILE",
        path_if=is_yaml,
    )
    drop_region_proj: bool = option("leave out a region_proj of another shape", default=False)


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Where and how numbers are computed."""

    device: str = option("auto, cpu, cuda or cuda:N; auto takes CUDA if there is a GPU", default="auto")
    precision: str = option(
        "autocast; auto trains in bf16 on CUDA, or in fp16 if the GPU has no bf16, and evaluates in fp32 as upstream,"
        " but for the ViT; on the CPU all is fp32",
        default="auto",
        choices=("auto", "fp16", "bf16", "fp32"),
    )
    memory_mib: float = option("bound on the ranking's temporary memory, in MiB", default=256, above=0)


@dataclass(frozen=True, kw_only=True)
class Config(RuntimeOptions, ModelOptions, CacheOptions, DataOptions):
    """What every configuration has.

    The groups stand from the last to the first: a dataclass has the fields of its last base first.
    """

    def __post_init__(self) -> None:
        check_options(self)
        self.benchmark  # raises for an unknown dataset, or a gallery that it does not have  # noqa: B018

    @cached_property
    def benchmark(self) -> "Benchmark":
        """The benchmark, in its folder."""
        return find_benchmark(self.dataset)(self.data_path, self.gallery)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is evaluated, and how much at a time."""

    model_path: Path = option("checkpoint (.pt) of a run, or other weights that docs/weights.md names", default=...)
    batch_size: int = option("images, or queries, at a time", default=128, above=0)
    box_file: Path | None = option(
        "JSON file with boxes of the ranked images: a score is then the mean of two, of reference and image seen whole,"
        " and of both seen through their boxes"
    )
    max_regions: int = option(
        "most regions of an image, the largest first", default=MAX_REGIONS, least=1, only_with="box_file"
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(EvaluationOptions, Config):
    """An evaluation of a checkpoint."""

    @property
    def boxes(self) -> BoxOptions | None:
        """The boxes of the ranked images."""
        return None if self.box_file is None else BoxOptions(self.box_file, self.max_regions)

    @property
    def scoring(self) -> Scoring:
        return Scoring(self.batch_size, self.num_workers, self.memory_mib)


def add_evaluation_flags(parser: ArgumentParser, leave_out: Iterable[str] = ()) -> None:
    """The flags of an evaluation; what is not given is the checkpoint's run's, or has its default."""
    parser.epilog = (
        "If the checkpoint lies in the folder of its run, --blip-model-name, --backbone, --transform and --target-ratio"
        " are that run's unless they are given."
    )
    add_flags(parser, "data", DataOptions, leave_out)
    add_flags(parser, "feature cache", CacheOptions)
    add_flags(parser, "model", ModelOptions)
    add_flags(parser, "evaluation", EvaluationOptions)
    add_flags(parser, "runtime", RuntimeOptions)
