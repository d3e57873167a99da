"""The configuration of a training: groups of settings, each field written once with its help and its check."""

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprc.core.errors import InputError
from sprc.core.options import option
from sprc.core.places import REPOSITORY
from sprc.data.options import MAX_REGIONS, BoxOptions
from sprc.retrieval.options import Config, Scoring

if TYPE_CHECKING:
    from sprc.benchmarks.benchmark import Preset

LAST_FILE = "tuned_clip_last.pt"
STATE_FILE = "training_state.pt"
# What may differ between a run and its continuation: how far it goes, where things lie, and what changes no number
# beyond its rounding; of the precision only the name, `auto` for what it is on another GPU.
FREE_TO_CHANGE = (
    "num_epochs", "planned_epochs", "schedule_epochs", "data_path", "weights", "box_file", "output_folder",
    "num_workers", "save_every", "micro_batch", "cache_device", "save_memory", "memory_mib", "feature_cache",
    "precision",
)  # fmt: skip


@dataclass(frozen=True)
class RegionWeight:
    """The weight of `loss_region`: constant, or falling linearly to 0 at the fraction `until` of the training."""

    start: float
    until: float | None = None

    def at(self, progress: float) -> float:
        """The weight at `progress`: 0 at the first step, 1 after the last one of the plan, more after that."""
        return self.start if self.until is None else self.start * max(0.0, 1 - progress / self.until)


# The objectives of `lavis.models.blip2_models.region`, each with the weight that it has unless another is given:
# FG-CLIP's 0.1 for `pairs`. `tokens` and `query` speed up the start and cost later, so their large weight ends at half
# time; `compose` gains most that way. The weight of `both` may stay.
REGION_WEIGHTS = {
    "pairs": RegionWeight(0.1),
    "tokens": RegionWeight(0.5, 0.5),
    "query": RegionWeight(0.5, 0.5),
    "compose": RegionWeight(0.5, 0.5),
    "both": RegionWeight(0.5),
    "foreground": RegionWeight(1.0),
}


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
        raise InputError(f"`save_every` is epoch, a number of steps, or minutes as 15m, not {text!r}")
    return (0, 60 * value) if minutes else (int(value), 0.0)


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """What a training begins with, beside the data."""

    max_triplets: int | None = option("train on the first so many triplets (default: all)", above=0)
    weights: str | None = option(
        "initial weights: a file or folder in any format of models/README.md (default: $SPRC_WEIGHTS, else what is"
        " in models/weights, a cache, or can be downloaded; tiny: random)",
        metavar="PATH|random",
        path_if=lambda text: text not in ("", "random"),
    )


@dataclass(frozen=True, kw_only=True)
class OptimisationOptions:
    """How the model is trained. None stands for the value of the benchmark's preset, see `TrainConfig.plan`."""

    num_epochs: int | None = option(
        "epochs (default: CIRR 50, FashionIQ 30); with --resume how far to go, while the plan stays the run's", above=0
    )
    schedule_epochs: int | None = option(
        "epochs that the learning rate is planned for (default: CIRR 80, or the epochs if they are more; FashionIQ"
        " the epochs); with --resume the rate follows a new plan from there"
    )
    warmup: float | None = option(
        "part of the schedule in which the learning rate rises (default: CIRR 1/50; FashionIQ 1.5 epochs)",
        metavar="PART",
    )
    batch_size: int = option("triplets in a step, of each process", default=128, above=0)
    micro_batch: int | None = option(
        "compute a step N triplets at a time, with the negatives of the whole batch: less memory, the same gradients,"
        " and a second forward pass",
        least=1,
        metavar="N",
    )
    compile: bool = option("compile the model with torch.compile: needs a C++ compiler", default=False)
    learning_rate: float | None = option("peak of the schedule (default: CIRR 1e-5, FashionIQ 2e-5)", above=0)
    loss_rtc: float | None = option("weight of the prompted text's loss (default: CIRR 0.4, FashionIQ 1)", least=0)
    loss_align: float | None = option("weight of the prompts' alignment (default: CIRR 0.4, FashionIQ 1)", least=0)
    loss_itm: float = option("accepted as upstream accepts it; the model has no such loss", default=1.0)
    seed: int = option("seed of everything random", default=0, least=0)


@dataclass(frozen=True, kw_only=True)
class RegionOptions:
    """The region-level contrastive loss."""

    use_region_loss: bool = option("add a region-level contrastive loss", default=False)
    box_file: Path | None = option("JSON file with the boxes of the training images")
    region_objective: str = option(
        "pairs: regions of reference and target, one to one; tokens: target regions find their image through the"
        " target tokens; query: the query finds the best region of its target; compose: target regions find the query"
        " that reference and sentence are composed to; both: tokens and compose, half each; foreground: the query"
        " finds its target, the images of one or both seen through their boxes and some of the rest, at random",
        default="compose",
        choices=tuple(REGION_WEIGHTS),
        only_with="use_region_loss",
    )
    loss_region: float | None = option(
        "weight of the region loss, constant (default: the objective's own: compose, tokens and query 0.5, falling to 0"
        " at half time; both 0.5; foreground 1; pairs 0.1)"
    )
    loss_region_until: float | None = option(
        "with --loss-region: its weight falls linearly to 0 at this part of the training (default: constant)",
        metavar="PART",
    )
    region_bias: float = option(
        "cross-attention prefers the boxes in training, with or without the region loss: what it takes from the logit"
        " of a patch outside of them, at first",
        default=0.0,
        least=0,
    )
    region_bias_until: float = option(
        "the bias falls linearly to 0 at this part of the training",
        default=0.5,
        above=0,
        only_with="region_bias",
        metavar="PART",
    )
    max_regions: int = option(
        "most regions of an image, the largest first", default=MAX_REGIONS, least=1, only_with="box_file"
    )


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Validation, and what is written."""

    validation_frequency: int = option("validate in every N-th epoch", default=1, above=0, metavar="N")
    save_training: bool = option("keep the last epoch's model: tuned_clip_last.pt", default=False)
    save_best: bool = option("keep the best epoch's model", default=False)
    save_memory: bool = option("keep the gallery's features in CPU memory", default=False)
    save_every: str = option(
        "save the state of the run every N steps, N minutes, or epoch", default="epoch", metavar="N|Nm|epoch"
    )
    output_folder: Path = option("folder in which the run's folder is made", default=REPOSITORY / "models")


@dataclass(frozen=True)
class Plan:
    """The settings of a run that a preset fills if the user does not give them."""

    num_epochs: int
    learning_rate: float
    loss_rtc: float
    loss_align: float


@dataclass(frozen=True, kw_only=True)
class TrainConfig(OutputOptions, RegionOptions, OptimisationOptions, TrainingInputs, Config):
    """A training run. The defaults are what upstream's README tells its users.

    What the user has not given stays None, and `plan` has the preset's value for it; so it follows the dataset also
    after `dataclasses.replace`. `planned_epochs` is set for a run that continues for another number of epochs: the
    number that it began with, to which its learning rate and the region weight keep.
    """

    planned_epochs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_schedule()
        self._check_regions()
        save_interval(self.save_every)

    @property
    def preset(self) -> "Preset":
        return self.benchmark.preset

    @cached_property
    def plan(self) -> Plan:
        """What the user has given, and the preset's values for the rest."""
        given = {name: getattr(self, name) for name in Plan.__dataclass_fields__}
        return Plan(**{name: getattr(self.preset, name) if v is None else v for name, v in given.items()})

    @property
    def scoring(self) -> Scoring:
        """How validation scores."""
        at_once = min(self.batch_size, self.micro_batch or self.batch_size)
        return Scoring(at_once, self.num_workers, self.memory_mib, self.save_memory)

    @property
    def boxes(self) -> BoxOptions | None:
        """The boxes of the training images."""
        return None if self.box_file is None else BoxOptions(self.box_file, self.max_regions)

    def settings(self) -> dict[str, Any]:
        """Every setting by name, with the values of preset and benchmark: what a run's files hold."""
        return asdict(self) | asdict(self.plan) | {"gallery": self.benchmark.gallery}

    def _check_schedule(self) -> None:
        planned, needed = self.schedule_epochs, self.begun_epochs
        if planned is not None and planned < needed:
            raise InputError(f"`schedule_epochs` {planned} is less than the {needed} epochs to run")
        if self.warmup is not None and not 0 < self.warmup < 1:
            raise InputError(f"`warmup` is a part of the schedule, between 0 and 1, not {self.warmup}")

    def _check_regions(self) -> None:
        switch = "use_region_loss" if self.use_region_loss else "region_bias" if self.region_bias > 0 else None
        if switch is not None and self.box_file is None:
            raise InputError(
                f"`{switch}` needs `box_file`, the boxes of the training images: make it with"
                " roi_align_integration/tools, or leave the flag out"
            )
        if switch is None and self.box_file is not None:
            raise InputError(
                "`box_file` has no effect without `use_region_loss` or `region_bias`: give one of them, or no boxes"
            )
        if self.loss_region is not None and not (self.use_region_loss and 0 <= self.loss_region < math.inf):
            raise InputError("`loss_region` is a weight of at least 0, for runs with `use_region_loss`")
        until = self.loss_region_until
        if until is not None and (self.loss_region is None or not 0 < until <= 1):
            raise InputError("`loss_region_until` is a part of the training, above 0 and up to 1, beside `loss_region`")
        if self.region_bias_until > 1:
            raise InputError(f"`region_bias_until` is a part of the training, up to 1, not {self.region_bias_until}")

    @property
    def begun_epochs(self) -> int:
        """The epochs that the run was begun for."""
        return self.planned_epochs or self.plan.num_epochs

    def progress_at(self, epochs: float) -> float:
        """How much of the plan has been done after `epochs`: 0 at the start, 1 at its end, more after it."""
        return epochs / self.begun_epochs

    def loss_weights(self, progress: float = 0.0) -> dict[str, float]:
        """Name of a loss -> its weight at `progress` of the plan. A loss without one is an error of the trainer."""
        weights = {"loss_itc": 1.0, "loss_rtc": self.plan.loss_rtc, "loss_align": self.plan.loss_align}
        if self.use_region_loss:
            weights["loss_region"] = self.region_weight.at(progress)
        return weights

    def region_bias_at(self, progress: float) -> float:
        """What cross-attention takes from the logit of a patch outside the boxes at `progress` of the plan."""
        return RegionWeight(self.region_bias, self.region_bias_until).at(progress)

    @property
    def region_weight(self) -> RegionWeight:
        if self.loss_region is None:
            return REGION_WEIGHTS[self.region_objective]
        return RegionWeight(self.loss_region, self.loss_region_until)

    def schedule(self) -> dict[str, float]:
        """Arguments of OneCycleLR but its peak and the steps of an epoch."""
        planned = self.preset.schedule(self.schedule_epochs or self.begun_epochs)
        given = {"epochs": self.schedule_epochs, "pct_start": self.warmup}
        return planned | {name: value for name, value in given.items() if value is not None}
