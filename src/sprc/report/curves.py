"""Curves of runs: losses and metrics over the epochs, from the CSV files in the folders of the runs."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from sprc.core.errors import InputError, shown
from sprc.core.reading import read_csv
from sprc.report.fonts import characters_of, font_for, plain, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

TRAINING, VALIDATION = "train_metrics.csv", "validation_metrics.csv"
FIX = "give the folder of a run that has trained and validated an epoch, with its files as they were written"
COLUMNS, MOST_PANELS = 4, 48
PANEL, SMALLEST_HEIGHT = (3.4, 2.2), 3.6  # inches
BOX = "\u25a1"
LARGEST = 1e100  # beyond it matplotlib finds no ticks
LEGEND_WIDTH = 600  # pixels of a run's name at 12 pixels of height


@dataclass(frozen=True)
class Curve:
    """Values over epochs, in the order of the file; NaN stands for what cannot be drawn."""

    epochs: list[float]
    values: list[float]


@dataclass(frozen=True)
class RunCurves:
    """What a run has written: column -> curve, of its training and of its validation."""

    label: str
    training: dict[str, Curve]
    validation: dict[str, Curve]


def read_runs(folders: Sequence[Path]) -> list[RunCurves]:
    """The curves of runs, each labelled by the name of its folder, or by its path if two have the same name.

    Raises InputError that names a CSV file that is missing, and the line that is broken.
    """
    folders = list(dict.fromkeys(folder.absolute() for folder in folders))
    names = Counter(folder.name for folder in folders)
    labels = [folder.name if names[folder.name] == 1 else str(folder) for folder in folders]
    return [
        RunCurves(label, read_curves(folder / TRAINING), read_curves(folder / VALIDATION))
        for label, folder in zip(labels, folders, strict=True)
    ]


def read_curves(path: Path) -> dict[str, Curve]:
    """Column -> curve of one CSV file. Raises InputError as `read_runs`."""
    rows = read_csv(path, FIX)
    if not rows or "epoch" not in rows[0][1]:
        raise InputError(f"{path} has no {'epoch' if not rows else 'column epoch'}: {FIX}")
    numbers = [{name: _number(text, name, f"{path}, line {line}") for name, text in row.items()} for line, row in rows]
    epochs = [row["epoch"] for row in numbers]
    return {name: Curve(epochs, [row[name] for row in numbers]) for name in numbers[0] if name != "epoch"}


def _number(text: str, name: str, place: str) -> float:
    try:
        value = float(text)
        return value if abs(value) < LARGEST else math.nan
    except ValueError as error:
        raise InputError(f"{place}: {shown(name)} is {shown(text)}, not a number: {FIX}") from error


def plot_runs(runs: Sequence[RunCurves], metrics: Sequence[str] | None = None) -> "Figure":
    """A figure with a panel for each column, training above validation, and all runs over each other in it.

    `metrics` are the columns to draw; None draws all. Raises InputError for one that no run has, and for too many.
    """
    from matplotlib.figure import Figure  # slow to import

    parts = [_panels([run.training for run in runs], metrics), _panels([run.validation for run in runs], metrics)]
    _check_names([name for part in parts for name in part], runs, metrics)
    across = min(COLUMNS, max(map(len, parts)))
    rows = [-(-len(part) // across) for part in parts]
    height = max(SMALLEST_HEIGHT, sum(rows) * PANEL[1] + 0.4 + 0.2 * len(runs))
    figure = Figure(figsize=(max(across, 2) * PANEL[0], height), layout="constrained")
    cells = iter(figure.subplots(sum(rows), across, squeeze=False).flat)
    for part, lines, unit in zip(parts, rows, ("", ", %"), strict=True):
        for panel, axes in zip_longest(part.items(), islice(cells, lines * across)):
            axes.set_axis_off() if panel is None else _draw(axes, panel[0] + unit, panel[1])
    _add_legend(figure, [run.label for run in runs])
    return figure


def _panels(of_runs: list[dict[str, Curve]], metrics: Sequence[str] | None) -> dict[str, list[Curve | None]]:
    """Column -> the curve of every run, None for a run without it; the columns that were asked for."""
    names = dict.fromkeys(name for curves in of_runs for name in curves if metrics is None or name in metrics)
    return {name: [curves.get(name) for curves in of_runs] for name in names}


def _check_names(drawn: list[str], runs: Sequence[RunCurves], metrics: Sequence[str] | None) -> None:
    """Raise InputError if a column that was asked for is nowhere, or if they are too many for a figure."""
    unknown = [name for name in metrics or () if name not in drawn]
    if unknown:
        known = dict.fromkeys(name for run in runs for name in run.training | run.validation)
        raise InputError(f"no run has the column {shown(unknown[0])}: `metrics` may be {', '.join(known)}")
    if not 0 < len(drawn) <= MOST_PANELS:
        raise InputError(f"{len(drawn)} columns cannot be drawn: choose 1 to {MOST_PANELS} as `metrics`")


def _draw(axes: "Axes", title: str, curves: list[Curve | None]) -> None:
    """One panel; a run has the same colour in all of them."""
    from matplotlib.ticker import MaxNLocator

    for number, curve in enumerate(curves):
        if curve is not None:
            axes.plot(curve.epochs, curve.values, marker=".", color=_colour(number), linewidth=1.5)
    (text,), font = _drawable([title])
    axes.set_title(text, loc="left", fontproperties=font)
    axes.set_xlabel("epoch", fontsize="small")
    axes.tick_params(labelsize="small")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)


def _add_legend(figure: "Figure", labels: list[str]) -> None:
    """The runs' names above the panels."""
    from matplotlib.lines import Line2D

    texts, font = _drawable([shorten(plain(label), font_for(label, 12), LEGEND_WIDTH) for label in labels])
    lines = [Line2D([], [], color=_colour(number), marker=".") for number in range(len(labels))]
    figure.legend(lines, texts, loc="outside upper left", prop=font, frameon=False)


def _drawable(texts: list[str]) -> tuple[list[str], "FontProperties"]:
    """Texts, and a font for matplotlib that has their characters; a box stands for one that no font has."""
    from matplotlib.font_manager import FontProperties

    path = Path(str(font_for("".join(texts), 12).path))
    has = characters_of(path) | {" "}
    known = ["".join(each if each in has else BOX for each in text) for text in texts]
    return [*map(_literal, known)], FontProperties(fname=str(path), size="medium")


def _colour(number: int) -> str:
    return f"C{number % 10}"


def _literal(text: str) -> str:
    """A text as matplotlib draws it as it is: $ would begin a formula, and _ hide a line from the legend."""
    return " " + text.replace("$", r"\$") if text.startswith("_") else text.replace("$", r"\$")
