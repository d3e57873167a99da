"""Results of a comparison of region losses: a CSV file of validations, and the table and plot made out of it."""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from region_arms import ARMS, WINNER

from sprc.core.errors import InputError
from sprc.core.files import append_csv, atomic_writer, held_file
from sprc.core.reading import read_csv

METRICS = {"recall_at1": "R@1", "recall_at5": "R@5", "recall_at10": "R@10", "group_recall_at1": "Rsubset@1"}
BASELINE = "none"
# A run that ends with less recall@1, in percent, has not started to learn: chance is below 0.5. Such runs are counted,
# and are in no mean. The rule was written down before any run that it could apply to; it is not for arms that see one
# half of the question.
STARTED = 3.0
HALVES = ("text", "image")


@dataclass(frozen=True)
class Row:
    """One validation of one run; recalls in percent. `steps` are the run's, `step` those that were done."""

    stage: str
    arm: str
    seed: int
    learning_rate: float
    loss_region: str
    steps: int
    step: int
    recall_at1: float
    recall_at5: float
    recall_at10: float
    group_recall_at1: float
    seconds: float
    machine: str
    date: str

    @property
    def key(self) -> tuple:
        """The run."""
        return self.stage, self.arm, self.seed, *self.setting

    @property
    def is_last(self) -> bool:
        return self.step == self.steps

    @property
    def has_started(self) -> bool:
        """Whether a run that ends with this row has started to learn (`STARTED`)."""
        return self.recall_at1 >= STARTED or self.arm in HALVES

    @property
    def setting(self) -> tuple[float, str]:
        return self.learning_rate, self.loss_region


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file, none if it is not there. Raises InputError that names the line."""
    if not path.is_file():
        return []
    kinds, rows, fix = {field.name: field.type for field in fields(Row)}, [], "remove the line, or the file"
    for number, entry in read_csv(path, fix):
        try:
            rows.append(Row(**{name: kinds[name](value) for name, value in entry.items()}))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}, line {number}: {error!r}: {fix}") from error
    return rows


def append_rows(path: Path, rows: list[Row]) -> None:
    """Add rows at the end; the file is whole at any moment, and another process adds its own before or after."""
    with held_file(path, wait=True):
        append_csv(path, [field.name for field in fields(Row)], map(asdict, rows), ending="\n")


def final_rows(rows: list[Row]) -> dict[str, dict[int, Row]]:
    """Arm -> seed -> the last step's row, of runs that have started. Raises InputError for an arm with two settings."""
    finals: dict[str, dict[int, Row]] = defaultdict(dict)
    settings: dict[str, tuple] = {}
    for row in rows:
        kind = (*row.setting, row.steps)
        if settings.setdefault(row.arm, kind) != kind:
            raise InputError(
                f"arm {row.arm} has rows of two settings, {settings[row.arm]} and {kind}: keep one in the CSV file"
            )
        if row.is_last and row.has_started:
            finals[row.arm][row.seed] = row
    return dict(finals)


def not_started(rows: list[Row]) -> dict[str, list[int]]:
    """Arm -> the seeds of its runs that have ended without having started."""
    idle: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        if row.is_last and not row.has_started:
            idle[row.arm].append(row.seed)
    return dict(idle)


def not_started_text(rows: list[Row]) -> str:
    """A line on the runs that are counted apart; "" without any."""
    arms = [f"`{arm}` seed {', '.join(map(str, sorted(seeds)))}" for arm, seeds in not_started(rows).items()]
    return f"not started, R@1 below {STARTED:g} at the end, and in no mean: {'; '.join(arms)}" if arms else ""


def paired_difference(first: dict[int, Row], second: dict[int, Row], metric: str) -> tuple[float, float]:
    """Mean of `first` - `second` over the seeds of both, and the half width of its 95 % interval (Student's t)."""
    from scipy.stats import t

    seeds = sorted(first.keys() & second.keys())
    differences = [getattr(first[seed], metric) - getattr(second[seed], metric) for seed in seeds]
    if len(differences) < 2:
        return statistics.fmean(differences) if differences else math.nan, math.inf
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), float(t.ppf(0.975, len(differences) - 1)) * error


def mean_curve(rows: list[Row], arm: str, metric: str) -> tuple[list[int], list[float]]:
    """Steps, and the metric's mean over the seeds at each."""
    values = defaultdict(list)
    for row in rows:
        if row.arm == arm:
            values[row.step].append(getattr(row, metric))
    steps = sorted(values)
    return steps, [statistics.fmean(values[step]) for step in steps]


def steps_to_reach(rows: list[Row], arm: str, recall: float) -> float:
    """After how many steps the mean R@1 first is `recall`, linear between validations; infinity if it never is."""
    steps, means = mean_curve(rows, arm, "recall_at1")
    before_step, before = 0, 0.0
    for step, mean in zip(steps, means, strict=True):
        if mean >= recall:
            part = (recall - before) / (mean - before) if mean > before else 1.0
            return before_step + (step - before_step) * part
        before_step, before = step, mean
    return math.inf


def markdown(rows: list[Row]) -> str:
    """The table: means in percent, paired differences to the baseline, seeds, and the steps to its final R@1."""
    finals = final_rows(rows)
    if BASELINE not in finals:
        raise InputError(f"the CSV file has no run of the arm {BASELINE} that has started and ended: run it first")
    names = list(METRICS.values())
    header = ["arm", "seeds", *names, *(f"Δ {name}" for name in names), "steps"]
    lines = [
        [f"`{arm}`", _seeds_cell(rows, finals, arm), *_cells(finals, arm), _steps_cell(rows, finals, arm)]
        for arm in ARMS
        if arm in finals
    ]
    return _table(header, lines)


def _table(header: list[str], lines: list[list[str]]) -> str:
    """Cells as a Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


def _seeds_cell(rows: list[Row], finals: dict[str, dict[int, Row]], arm: str) -> str:
    """The seeds that count, and how many runs have not started."""
    idle = len(not_started(rows).get(arm, []))
    return str(len(finals[arm])) + (f" ({idle} not started)" if idle else "")


def _cells(finals: dict[str, dict[int, Row]], arm: str) -> list[str]:
    differences = [""] * len(METRICS) if arm == BASELINE else _differences(finals[arm], finals[BASELINE])
    return _means(finals[arm].values()) + differences


def _means(rows: Collection[Row]) -> list[str]:
    """The mean of every metric, in words."""
    return [f"{statistics.fmean(getattr(row, metric) for row in rows):.2f}" for metric in METRICS]


def _differences(first: dict[int, Row], second: dict[int, Row]) -> list[str]:
    """What `first` gains over `second` in every metric, in words."""
    return [difference_text(*paired_difference(first, second, metric)) for metric in METRICS]


def difference_text(mean: float, half_width: float) -> str:
    if math.isnan(mean):
        return "no seed in common"
    return f"{mean:+.2f}" + (f" ± {half_width:.2f}" if math.isfinite(half_width) else " (one seed)")


def _steps_cell(rows: list[Row], finals: dict[str, dict[int, Row]], arm: str) -> str:
    """The steps in which an arm reaches what the baseline ends with on the same seeds."""
    shared = finals[arm].keys() & finals[BASELINE].keys()
    if not shared:
        return "no seed in common"
    if ARMS[arm].seen:
        return f"those of `{ARMS[arm].like}`"
    goal = statistics.fmean(finals[BASELINE][seed].recall_at1 for seed in shared)
    steps = steps_to_reach([row for row in rows if row.seed in shared], arm, goal)
    return f"{steps:.0f} of {next(iter(finals[arm].values())).steps}" if math.isfinite(steps) else "never"


def against(rows: list[Row], arm: str, controls: list[str]) -> str:
    """A second table: what `arm` gains over each control, seed by seed; "" without any."""
    finals = final_rows(rows)
    lines = []
    for control in (name for name in controls if name in finals and arm in finals and name != arm):
        shared = finals[arm].keys() & finals[control].keys()
        cells = _differences(finals[arm], finals[control])
        lines.append([f"`{control}`", str(len(shared)), *cells])
    return "" if not lines else _table([f"`{arm}` over", "seeds", *(f"Δ {name}" for name in METRICS.values())], lines)


def longer_table(rows: list[Row]) -> str:
    """Whether an arm had converged: the longer runs' last recall over their own at the step at which the usual runs
    end, and over that of the usual runs, whose schedule is shorter: other runs, with the chance of runs between them.
    """
    longer = final_rows([r for r in rows if r.stage == "longer"])
    usual = final_rows([r for r in rows if r.stage in ("report", "chosen") and r.seed in longer.get(r.arm, ())])
    lines = []
    for arm in (name for name in ARMS if name in longer and name in usual):
        more, fewer = (next(iter(finals[arm].values())).steps for finals in (longer, usual))
        within = {
            r.seed: r for r in rows if (r.stage, r.arm, r.step) == ("longer", arm, fewer) and r.seed in longer[arm]
        }
        for words, others in (
            (f"step {more} over {fewer}", within),
            (f"runs of {more} over runs of {fewer}", usual[arm]),
        ):
            shared = longer[arm].keys() & others.keys()
            lines.append([f"`{arm}`", str(len(shared)), words, *_differences(longer[arm], others)])
    return _table(["arm", "seeds", "compared", *(f"Δ {name}" for name in METRICS.values())], lines)


def trials_table(rows: list[Row]) -> str:
    """Every setting that was tried: its seeds, and the means at the last step over them."""
    order = {arm: number for number, arm in enumerate(ARMS)}
    of_trial: dict[tuple, list[Row]] = defaultdict(list)
    for row in sorted((row for row in rows if row.is_last), key=lambda row: (order[row.arm], row.seed)):
        of_trial[row.arm, row.learning_rate, row.loss_region].append(row)
    lines = []
    for (arm, rate, weight), found in of_trial.items():
        seeds = ", ".join(str(row.seed) for row in found)
        lines.append([f"`{arm}`", f"{rate:g}", weight, seeds, *_means(found)])
    return _table(["arm", "learning rate", "region weight", "seeds", *METRICS.values()], lines)


def legend(rows: list[Row]) -> str:
    """What the names of the arms mean."""
    present = (arm for arm in ARMS if any(row.arm == arm for row in rows))
    return "\n".join(f"- `{arm}`: {ARMS[arm].title}" for arm in present)


def plot(rows: list[Row], path: Path) -> None:
    """Mean R@1 against steps for every arm, over the seeds that all of them have."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.add_subplot()
    finals = final_rows(rows)
    shared = set.intersection(*(set(of_arm) for of_arm in finals.values()))
    counts: Counter[str] = Counter()
    for arm in (arm for arm in ARMS if arm in finals):
        steps, means = mean_curve([row for row in rows if row.seed in shared], arm, "recall_at1")
        style, label = _line_style(arm), ARMS[arm].title.replace("`", "")  # Markdown's, in the tables
        axes.plot(steps, means, style, label=label, color="black" if arm == BASELINE else f"C{counts[style] % 10}")
        counts[style] += arm != BASELINE
    axes.set(xlabel="training steps", ylabel=f"recall@1 on validation, % (mean of {len(shared)} seeds)", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _line_style(arm: str) -> str:
    """Solid for the baseline and the objectives, dashed for what the best one is set against, then the others'.

    Boxes at retrieval are measured once, at the end: a star.
    """
    if ARMS[arm].seen:
        return "*"
    objective = ARMS[arm].objective
    if arm in (BASELINE, objective):
        return "-"
    return ":" if objective is None else "--" if objective == WINNER else "-."
