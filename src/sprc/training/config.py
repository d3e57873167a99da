"""One frozen configuration of a training run; what differs between datasets is a preset, not a second loop."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sprc.core.command_line import absolute
from sprc.core.errors import InputError
from sprc.core.places import REPOSITORY


def cirr_schedule(num_epochs: int) -> dict[str, float]:
    """OneCycleLR planned for 80 epochs, whatever is run; more epochs than that are planned as they are."""
    return {"epochs": max(80, num_epochs), "pct_start": 1 / 50}


def fashioniq_schedule(num_epochs: int) -> dict[str, float]:
    """OneCycleLR over the epochs that are run, rising for one and a half of them from a hundredth of the peak.

    Upstream fails with a single epoch: here it rises for three quarters of it.
    """
    return {"epochs": num_epochs, "pct_start": 1.5 / max(num_epochs, 2), "div_factor": 100.0}


@dataclass(frozen=True)
class Preset:
    """What a dataset fixes, as upstream: names of folder and file, the metric that picks the best epoch, the schedule
    (arguments of OneCycleLR), and the settings that `TrainConfig` leaves open.
    """

    tag: str
    monitor: str
    best_file: str
    schedule: Callable[[int], dict[str, float]]
    settings: dict[str, float]


PRESETS = {
    "cirr": Preset(
        "cirr",
        "arithmetic_mean",
        "tuned_clip_arithmetic.pt",
        cirr_schedule,
        {"num_epochs": 50, "learning_rate": 1e-5, "loss_rtc": 0.4, "loss_align": 0.4},
    ),
    "fashioniq": Preset(
        "fiq",
        "average_recall",
        "tuned_clip_best.pt",
        fashioniq_schedule,
        {"num_epochs": 30, "learning_rate": 2e-5, "loss_rtc": 1.0, "loss_align": 1.0},
    ),
}


@dataclass(frozen=True)
class RegionWeight:
    """The weight of `loss_region`: constant, or falling linearly to 0 at the fraction `until` of the training."""

    start: float
    until: float | None = None

    def at(self, progress: float) -> float:
        """The weight at `progress`: 0 at the first step, 1 after the last one of the plan, more after that."""
        return self.start if self.until is None else self.start * max(0.0, 1 - progress / self.until)


# The objectives of `lavis.models.blip2_models.region`, and the weight that each has where none is asked for. FG-CLIP's
# 0.1 for `pairs`; a large weight that ends at half time for `tokens` and `query`, which speed up the start and cost
# later, and for `compose`, which gains most so; `both` may stay.
REGION_WEIGHTS = {
    "pairs": RegionWeight(0.1),
    "tokens": RegionWeight(0.5, 0.5),
    "query": RegionWeight(0.5, 0.5),
    "compose": RegionWeight(0.5, 0.5),
    "both": RegionWeight(0.5),
}

LAST_FILE = "tuned_clip_last.pt"
STATE_FILE = "training_state.pt"
SETTINGS_FILE = "training_hyperparameters.json"
BACKBONE_FILE = "backbone.yaml"
# What may differ between a run and its continuation: how far it goes, where things lie, and what changes no number
# beyond its rounding; of the precision only the name, `auto` for what it is on another GPU.
FREE_TO_CHANGE = (
    "num_epochs", "planned_epochs", "schedule_epochs", "data_path", "weights", "box_file", "output_folder",
    "num_workers", "save_every", "micro_batch", "cache_device", "save_memory", "memory_mib", "feature_cache",
    "precision",
)  # fmt: skip


def is_yaml(backbone: str) -> bool:
    """Whether a backbone is the path of a YAML file, and no name."""
    return backbone.endswith((".yaml", ".yml"))


def find_preset(dataset: str) -> Preset:
    """The preset of a dataset, in any case. Raises InputError for another."""
    if dataset.lower() in PRESETS:
        return PRESETS[dataset.lower()]
    raise InputError(f"dataset {dataset!r} is not one that this version trains on: use --dataset CIRR or FashionIQ")


def save_interval(text: str) -> tuple[int, float]:
    """`epoch`, a number of steps, or minutes as `15m` -> (steps, seconds) between saves; 0, 0 for none in an epoch.

    Raises InputError for anything else.
    """
    if text == "epoch":
        return 0, 0.0
    minutes = text.endswith("m")
    try:
        value = float(text.removesuffix("m")) if minutes else int(text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise InputError(f"--save-every is epoch, a number of steps, or minutes as 15m, not {text!r}")
    return (0, 60 * value) if minutes else (value, 0.0)


@dataclass(frozen=True)
class TrainConfig:
    """A training run. The defaults are what upstream's README tells its users; what is None comes from the preset.

    `feature_cache` is a folder for the frozen ViT's output, or `off`. `gallery` is FashionIQ's protocol: `split` ranks
    every image of the split list, `captions` only those that a caption names. `precision` is `auto` (to train on
    CUDA bf16, or fp16 where there is none; else fp32), `fp16`, `bf16` or `fp32`; `batch_size` is that of each process;
    `micro_batch` bounds what of it is in memory at a time; `memory_mib` bounds the temporaries of the ranking.

    Paths become absolute, and `~` the user's folder, so that they hold from any working directory. `planned_epochs` is
    set for a run that continues for another number of epochs: the number that it began with, to which its learning
    rate and the region weight keep.
    """

    dataset: str
    data_path: Path | None = None
    gallery: str = "split"
    max_triplets: int | None = None
    box_file: Path | None = None
    max_regions: int = 5
    transform: str = "targetpad"
    target_ratio: float = 1.25
    num_workers: int = 4
    blip_model_name: str = "blip2_cir_align_prompt"
    backbone: str = "pretrain"
    weights: str | None = None
    drop_region_proj: bool = False
    num_epochs: int | None = None
    planned_epochs: int | None = None
    schedule_epochs: int | None = None
    warmup: float | None = None
    batch_size: int = 128
    micro_batch: int | None = None
    learning_rate: float | None = None
    loss_rtc: float | None = None
    loss_align: float | None = None
    loss_itm: float = 1.0
    use_region_loss: bool = False
    region_objective: str = "compose"
    loss_region: float | None = None
    loss_region_until: float | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    validation_frequency: int = 1
    memory_mib: float = 256
    save_training: bool = False
    save_best: bool = False
    save_memory: bool = False
    save_every: str = "epoch"
    feature_cache: str = "off"
    cache_precision: str = "fp16"
    cache_device: str = "cpu"
    output_folder: Path = REPOSITORY / "models"

    def __post_init__(self):
        for name, value in self.preset.settings.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        self._make_paths_absolute()
        positive = ("num_epochs", "batch_size", "validation_frequency", "learning_rate", "memory_mib")
        for name in [n for n in positive if not 0 < getattr(self, n) < math.inf]:
            raise InputError(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        for name in [n for n in ("loss_rtc", "loss_align", "seed") if not 0 <= getattr(self, n) < math.inf]:
            raise InputError(f"--{name.replace('_', '-')} must be at least 0, not {getattr(self, name)}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise InputError(f"--micro-batch must be at least 1, not {self.micro_batch}")
        if self.num_workers < 0 or (self.max_triplets is not None and self.max_triplets < 1):
            raise InputError("--num-workers must be at least 0 and --max-triplets at least 1")
        self._check_schedule()
        self._check_regions()
        self._check_idle_flags()
        save_interval(self.save_every)
        if self.gallery not in (("split", "captions") if self.preset.tag == "fiq" else ("split",)):
            raise InputError(f"--gallery {self.gallery} is for FashionIQ, which has split and captions; CIRR has split")

    @property
    def preset(self) -> Preset:
        return find_preset(self.dataset)

    def _make_paths_absolute(self) -> None:
        for name in ("data_path", "box_file", "output_folder"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, absolute(getattr(self, name)))
        words = {"weights": self.weights in (None, "", "random"), "feature_cache": self.feature_cache == "off"}
        words["backbone"] = not is_yaml(self.backbone)
        for name in [name for name, is_word in words.items() if not is_word]:
            object.__setattr__(self, name, str(absolute(getattr(self, name))))

    def _check_schedule(self) -> None:
        planned, needed = self.schedule_epochs, self.planned_epochs or self.num_epochs
        if planned is not None and planned < needed:
            raise InputError(f"--schedule-epochs {planned} is less than the {needed} epochs to run")
        if self.warmup is not None and not 0 < self.warmup < 1:
            raise InputError(f"--warmup is a part of the schedule, between 0 and 1, not {self.warmup}")

    def _check_regions(self) -> None:
        if self.region_objective not in REGION_WEIGHTS:
            raise InputError(f"--region-objective {self.region_objective!r}: use one of {', '.join(REGION_WEIGHTS)}")
        if self.use_region_loss and self.box_file is None:
            raise InputError(
                "--use-region-loss needs --box-file, the boxes of the training images: make it with"
                " roi_align_integration/tools, or leave the flag out"
            )
        if self.loss_region is not None and not (self.use_region_loss and 0 <= self.loss_region < math.inf):
            raise InputError("--loss-region is a weight of at least 0, for runs with --use-region-loss")
        until = self.loss_region_until
        if until is not None and (self.loss_region is None or not 0 < until <= 1):
            raise InputError("--loss-region-until is a part of the training, above 0 and up to 1, beside --loss-region")
        if self.max_regions < 1:
            raise InputError(f"--max-regions must be at least 1, not {self.max_regions}")

    def _check_idle_flags(self) -> None:
        """Raises InputError for a flag whose switch is off: the run would not be the one that was meant."""
        switches = {
            "--use-region-loss": (self.use_region_loss, ("box_file", "region_objective", "max_regions")),
            "--feature-cache": (self.feature_cache != "off", ("cache_precision", "cache_device")),
        }
        for switch, (is_on, names) in switches.items():
            for name in names:
                if not is_on and getattr(self, name) != getattr(type(self), name):
                    raise InputError(
                        f"--{name.replace('_', '-')} has no effect without {switch}: give both, or neither"
                    )

    def progress_at(self, epochs: float) -> float:
        """How much of the plan has been done after `epochs`: 0 at the start, 1 at its end, more after it."""
        return epochs / (self.planned_epochs or self.num_epochs)

    def loss_weights(self, progress: float = 0.0) -> dict[str, float]:
        """Name of a loss -> its weight at `progress` of the plan. A loss without a weight is an error of the engine."""
        weights = {"loss_itc": 1.0, "loss_rtc": self.loss_rtc, "loss_align": self.loss_align}
        if self.use_region_loss:
            given = RegionWeight(self.loss_region, self.loss_region_until)
            own = REGION_WEIGHTS[self.region_objective] if self.loss_region is None else given
            weights["loss_region"] = own.at(progress)
        return weights

    def schedule(self) -> dict[str, float]:
        """Arguments of OneCycleLR but its peak and the steps of an epoch."""
        planned = self.preset.schedule(self.schedule_epochs or self.planned_epochs or self.num_epochs)
        given = {"epochs": self.schedule_epochs, "pct_start": self.warmup}
        return planned | {name: value for name, value in given.items() if value is not None}

    @property
    def protocol(self) -> str:
        """What validation ranks, in words."""
        return {
            "split": "every image of the split list",
            "captions": "the images that occur in captions",
        }[self.gallery]
