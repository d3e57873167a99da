"""The regimes of a comparison of region losses: what a run starts from, and the numbers that belong to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from region_arms import Weight

from sprc.core.places import REPOSITORY

DOCS = REPOSITORY / "roi_align_integration" / "docs"
STAGES = ("report", "tune", "longer", "quick")


@dataclass(frozen=True)
class Regime:
    """The numbers of a regime.

    `learning_rates` are tried by an arm without regions, and the others have the first of them. `weights` are the
    settings of an objective's region loss to try where they are others than the arm's own; as many as learning rates.
    `epochs` are those of each of `STAGES`. No reported seed was tuned on. `csv` has the committed rows.
    """

    csv: Path
    learning_rates: tuple[float, ...]
    epochs: Mapping[str, int]
    report_seeds: tuple[int, ...]
    tune_seeds: tuple[int, ...]
    weights: Mapping[str, tuple[Weight, ...]] = field(default_factory=dict)


SCRATCH = Regime(
    csv=DOCS / "benchmark_regions.csv",
    learning_rates=(2e-3, 1e-3, 3e-3),
    epochs={"report": 85, "tune": 85, "longer": 127, "quick": 61},
    report_seeds=tuple(range(8)),
    tune_seeds=(100,),
)
PRETRAINED = Regime(
    csv=DOCS / "benchmark_regions_pretrained.csv",
    learning_rates=(2e-4, 1e-4, 4e-4),
    epochs={"report": 31, "tune": 31, "longer": 46, "quick": 31},
    report_seeds=tuple(range(400, 408)),
    tune_seeds=(300, 301, 302),
)
REGIMES = {"scratch": SCRATCH, "pretrained": PRETRAINED}
