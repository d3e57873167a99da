"""The regimes of a comparison of region losses: what a run starts from, and the numbers that belong to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from region_arms import ARMS, BIAS, BOX_MAKERS, Weight

from lavis.models.blip2_models.region import OBJECTIVES
from sprc.core.places import REPOSITORY

DOCS = REPOSITORY / "roi_align_integration" / "docs"
# `chosen` are rows of seeds that a choice was made on: they are kept, and are no result of what was chosen.
STAGES = ("report", "tune", "ideas", "longer", "quick", "chosen")


@dataclass(frozen=True)
class Regime:
    """The numbers of a regime.

    `learning_rates` are tried by an arm without regions. The others have the first of them, and try as many weights of
    their region loss: `weights` by objective, or else the arm's own. `epochs` are those of each of `STAGES` that
    trains. `arms` are run if none are asked for. No choice was made on a reported seed. `csv` has the committed rows.
    """

    csv: Path
    learning_rates: tuple[float, ...]
    epochs: Mapping[str, int]
    report_seeds: tuple[int, ...]
    tune_seeds: tuple[int, ...]
    arms: tuple[str, ...]
    weights: Mapping[str, tuple[Weight, ...]] = field(default_factory=dict)


SCRATCH = Regime(
    csv=DOCS / "benchmark_regions.csv",
    learning_rates=(2e-3, 1e-3),
    epochs={"report": 85, "tune": 85, "ideas": 85, "longer": 127, "quick": 61},
    report_seeds=tuple(range(200, 208)),
    tune_seeds=(100, 101, 102),
    arms=("none", "compose", "permuted", "whole", "grid", "compose-bias4"),
)
PRETRAINED = Regime(
    csv=DOCS / "benchmark_regions_pretrained.csv",
    learning_rates=(1e-3, 5e-4),
    # Tuning has enough to choose a setting, the report as many as its slowest arm rises for.
    epochs={"report": 19, "tune": 13, "ideas": 13, "longer": 28, "quick": 13},
    report_seeds=tuple(range(400, 408)),
    tune_seeds=(300, 301, 302),
    arms=(
        "none",
        *OBJECTIVES,
        *(f"foreground-{name}" for name in BOX_MAKERS if name != "grid"),
        "none-0.1",
        "none-0.025",
        BIAS,
        *(f"bias-{name}" for name in BOX_MAKERS if name not in ("whole", "grid")),
        *(arm for arm in ARMS if ARMS[arm].seen),
        "text",
        "image",
    ),
)
REGIMES = {"scratch": SCRATCH, "pretrained": PRETRAINED}
