"""Which runs a comparison of region losses needs: an arm, a setting and a seed each."""

import argparse
from dataclasses import dataclass

from region_arms import ARMS, Weight
from region_regimes import REGIMES, SCRATCH, Regime
from region_table import Row


@dataclass(frozen=True)
class Job:
    """One run: an arm with a setting and a seed. `stage` is report, tune, longer or quick (`region_regimes.STAGES`)."""

    stage: str
    arm: str
    seed: int
    learning_rate: float
    weight: Weight | None
    epochs: int

    @property
    def key(self) -> tuple:
        return self.stage, self.arm, self.seed, self.learning_rate, str(self.weight or "")

    @property
    def name(self) -> str:
        return "-".join(str(part).replace(" ", "_") for part in self.key if part != "")


def trials(arm: str, regime: Regime = SCRATCH) -> list[tuple[float, Weight | None]]:
    """The settings that an arm is tuned over, as many for every arm: learning rates, or weights of its region loss."""
    objective, rates = ARMS[arm].objective, regime.learning_rates
    if objective is None:
        return [(rate, None) for rate in rates]
    weights = regime.weights.get(objective, ARMS[arm].weights)
    return [(rates[0], weight) for weight in weights[: len(rates)]]


def chosen_setting(arm: str, rows: list[Row], regime: Regime = SCRATCH) -> tuple[float, Weight | None]:
    """The trial of the best mean recall@1 at the last step of the tuning runs; the first if there are none.

    An arm that is `like` another has that one's.
    """
    if ARMS[arm].like is not None:
        return chosen_setting(ARMS[arm].like, rows, regime)

    def score(trial: tuple[float, Weight | None]) -> float:
        found = [r.recall_at1 for r in rows if r.stage == "tune" and r.arm == arm and r.is_last
                 and r.setting == (trial[0], str(trial[1] or ""))]  # fmt: skip
        return sum(found) / len(found) if found else -1.0

    return max(trials(arm, regime), key=score)


def plan(args: argparse.Namespace, rows: list[Row]) -> list[Job]:
    """The runs that are asked for and are not in the CSV file, seed by seed, so that a part of them is paired."""
    jobs, regime = [], REGIMES[args.regime]
    for seed in args.seeds:
        for arm in args.arms:
            settings = trials(arm, regime) if args.stage == "tune" else [chosen_setting(arm, rows, regime)]
            if args.data_path is not None:
                settings = [(args.learning_rate, weight) for _, weight in settings]
            jobs += [Job(args.stage, arm, seed, *setting, args.num_epochs) for setting in settings]
    done = {row.key for row in rows if row.is_last}
    return [job for job in jobs if job.key not in done]
