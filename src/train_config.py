"""One frozen configuration of a training run; what differs between datasets is a preset, not a second loop."""

from dataclasses import dataclass
from pathlib import Path

from lavis.common.errors import InputError
from utils import REPOSITORY


@dataclass(frozen=True)
class Preset:
    """What a dataset fixes, as upstream: names of folder and file, the metric that picks the best epoch, the schedule.

    OneCycleLR is planned for `max(planned_epochs, num_epochs)` epochs, so that more epochs than planned do not fail.
    """

    tag: str
    monitor: str
    best_file: str
    planned_epochs: int
    pct_start: float


PRESETS = {
    "cirr": Preset("cirr", "arithmetic_mean", "tuned_clip_arithmetic.pt", planned_epochs=80, pct_start=1 / 50),
}
LAST_FILE = "tuned_clip_last.pt"


def find_preset(dataset: str) -> Preset:
    """The preset of a dataset, in any case. Raises InputError for another."""
    if dataset.lower() in PRESETS:
        return PRESETS[dataset.lower()]
    raise InputError(f"dataset {dataset!r} is not one that this version trains on: use --dataset CIRR")


@dataclass(frozen=True)
class TrainConfig:
    """A training run. The defaults are what upstream's README tells its users for CIRR; None means by dataset.

    `precision` is `auto` (fp16 on CUDA, fp32 elsewhere), `fp16`, `bf16` or `fp32`; `memory_mib` bounds the temporaries
    of the ranking.
    """

    dataset: str
    data_path: Path | None = None
    max_triplets: int | None = None
    transform: str = "targetpad"
    target_ratio: float = 1.25
    num_workers: int = 4
    blip_model_name: str = "blip2_cir_align_prompt"
    backbone: str = "pretrain"
    weights: str | None = None
    num_epochs: int = 50
    batch_size: int = 128
    learning_rate: float = 1e-5
    loss_rtc: float = 0.4
    loss_align: float = 0.4
    loss_itm: float = 1.0
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    validation_frequency: int = 1
    memory_mib: float = 256
    save_training: bool = False
    save_best: bool = False
    save_memory: bool = False
    output_folder: Path = REPOSITORY / "models"

    def __post_init__(self):
        positive = ("num_epochs", "batch_size", "validation_frequency", "learning_rate", "memory_mib")
        for name in [n for n in positive if not getattr(self, n) > 0]:
            raise InputError(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        if self.num_workers < 0 or (self.max_triplets is not None and self.max_triplets < 1):
            raise InputError("--num-workers must be at least 0 and --max-triplets at least 1")

    @property
    def preset(self) -> Preset:
        return find_preset(self.dataset)

    @property
    def loss_weights(self) -> dict[str, float]:
        """Name of a loss -> its weight in the total. A loss without a weight is an error of the engine."""
        return {"loss_itc": 1.0, "loss_rtc": self.loss_rtc, "loss_align": self.loss_align}
