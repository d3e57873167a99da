"""Curves are the numbers of the CSV files, a run is one colour everywhere, and a broken file is named."""

import csv

import pytest
from matplotlib.colors import same_color

from sprc.core.errors import InputError
from sprc.core.files import append_csv
from sprc.report.curves import BOX, MOST_PANELS, plot_runs, read_runs


def make_run(folder, epochs=3, **more):
    folder.mkdir(parents=True, exist_ok=True)
    for epoch in range(epochs):
        losses = {"epoch": epoch, "loss_itc": 3.0 - epoch, "loss_rtc": 2.5} | more
        recalls = {"epoch": epoch, "recall_at1": 10.0 * epoch, "recall_at10": 50.0}
        append_csv(folder / "train_metrics.csv", list(losses), [losses])
        append_csv(folder / "validation_metrics.csv", list(recalls), [recalls])
    return folder


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.axison}


def test_every_column_has_a_panel_with_its_numbers(tmp_path):
    run = make_run(tmp_path / "run")
    found = panels(plot_runs(read_runs([run])))
    assert list(found) == ["loss_itc", "loss_rtc", "recall_at1, %", "recall_at10, %"]
    with open(run / "validation_metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    (line,) = found["recall_at1, %"].lines
    assert list(line.get_xdata()) == [float(row["epoch"]) for row in rows]
    assert list(line.get_ydata()) == [float(row["recall_at1"]) for row in rows] == [0, 10, 20]


def test_several_runs_lie_over_each_other(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", 2, loss_region=1.0), tmp_path / "a"]
    figure = plot_runs(read_runs(runs))
    found = panels(figure)
    assert [len(axes.lines) for axes in found.values()] == [2, 2, 1, 2, 2]
    only_b = found["loss_region"].lines[0]
    assert same_color(only_b.get_color(), found["loss_itc"].lines[1].get_color())
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]
    for handle, line in zip(legend.get_lines(), found["loss_itc"].lines, strict=True):
        assert same_color(handle.get_color(), line.get_color())


def test_folders_of_one_name_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / side / "run", 1) for side in ("x", "y")]
    assert [run.label for run in read_runs(runs)] == [str(run) for run in runs]
    assert [run.label for run in read_runs(runs[:1])] == ["run"]


@pytest.mark.parametrize("name", ["_hidden", "$\\frac$ $", "圆形", "🙂", "x" * 200])
@pytest.mark.filterwarnings("error")
def test_any_name_is_drawn_as_it_is(tmp_path, name):
    """A character that no font of this system has is a box."""
    figure = plot_runs(read_runs([make_run(tmp_path / name, 2, **{name: 1.0})]))
    with open(tmp_path / "plot.png", "wb") as file:
        figure.savefig(file, format="png")
    (text,) = figure.legends[0].get_texts()
    for drawn in (text.get_text(), list(panels(figure))[2]):
        drawn = drawn.replace("\\$", "$").strip()
        assert drawn in (name, BOX * len(name)) or (len(name) == 200 and ("…" in drawn or drawn == name))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [("1e308", "-1e308"), ("nan", "inf"), ("1e200", "1")])
def test_what_is_too_large_to_draw_is_a_gap(tmp_path, values):
    run = make_run(tmp_path / "run", 1)
    (run / "train_metrics.csv").write_text("epoch,loss\n" + "".join(f"{n},{v}\n" for n, v in enumerate(values)))
    figure = plot_runs(read_runs([run]))
    with open(tmp_path / "plot.png", "wb") as file:
        figure.savefig(file, format="png")
    drawn = panels(figure)["loss"].lines[0].get_ydata()
    assert [str(value) for value in drawn] == ["1.0" if value == "1" else "nan" for value in values]


def test_columns_can_be_chosen(tmp_path):
    runs = read_runs([make_run(tmp_path / "run")])
    assert list(panels(plot_runs(runs, ["recall_at1"]))) == ["recall_at1, %"]
    assert list(panels(plot_runs(runs, ["recall_at1", "loss_rtc"]))) == ["loss_rtc", "recall_at1, %"]
    with pytest.raises(InputError, match="no run has the column 'x': `metrics` may be loss_itc, loss_rtc, recall_at1"):
        plot_runs(runs, ["recall_at1", "x"])


def test_too_many_columns_are_refused(tmp_path):
    many = {f"loss_{n}": 1.0 for n in range(MOST_PANELS)}
    with pytest.raises(InputError, match=f"columns cannot be drawn: choose 1 to {MOST_PANELS}"):
        plot_runs(read_runs([make_run(tmp_path / "run", 1, **many)]))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"no file \S+train_metrics\.csv: give the folder of a run"),
        ("", r"train_metrics\.csv has no epoch"),
        ("epoch,loss_itc\n", r"train_metrics\.csv has no epoch"),
        ("step,loss_itc\n1,2\n", r"train_metrics\.csv has no column epoch"),
        ("epoch,loss_itc\n0,1.5\n1,half\n", r"train_metrics\.csv, line 3: 'loss_itc' is 'half', not a number"),
        ("epoch,loss_itc\n0,1.5\n1\n", r"train_metrics\.csv, line 3 has not the 2 columns"),
        (b"\xff\xfe\x00", r"train_metrics\.csv is no CSV file"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, says):
    run = make_run(tmp_path / "run")
    path = run / "train_metrics.csv"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=says):
        read_runs([run])
