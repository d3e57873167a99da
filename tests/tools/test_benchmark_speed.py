"""The measurements of speed and of what regions cost."""

from argparse import Namespace
from types import SimpleNamespace

import pytest


def test_what_regions_cost_is_measured(capsys):
    from benchmark_region_cost import main as benchmark

    ratios = benchmark(["--batch-size", "2", "--repeats", "1", "--device", "cpu"])
    assert list(ratios) == ["loading", "forward", "training step"]
    assert all(ratio > 0 for ratio in ratios.values())
    assert "with regions" in capsys.readouterr().out


def row_in_here(row: str, argv: list[str]) -> dict:
    from benchmark_speed import build_parser
    from speed_rows import measure_row

    return measure_row(build_parser().parse_args([*argv, "--row", row]))


@pytest.mark.integration
def test_speed_is_measured(warm_run, tmp_path, capsys, monkeypatch):
    """`validation` in a process of its own, as a user has every row; the others in this one, which is quicker."""
    import benchmark_speed
    import speed_rows
    from benchmark_speed import main as benchmark
    from benchmark_speed import whole_training

    monkeypatch.setitem(speed_rows.MATRIX_SIDE, "cpu", 512)
    monkeypatch.setattr(benchmark_speed, "subprocess", SimpleNamespace(run=warm_run, PIPE=None))
    original = benchmark_speed.run_row
    monkeypatch.setattr(
        benchmark_speed, "run_row", lambda row, argv: (original if row == "validation" else row_in_here)(row, argv)
    )

    table, rows = tmp_path / "table.md", ["upstream", "cached+regions", "validation"]
    flags = ["--backbone", "tiny", "--batch-size", "2", "--steps", "1", "--threads", "1", "--device", "cpu"]
    found = benchmark([*flags, "--folder", str(tmp_path / "data"), "--table", str(table), "--rows", *rows])
    assert set(found) == {"prepare", *rows}
    assert all(found[row]["rate"] > 0 and found[row]["gib"] > 0 for row in rows)
    assert all(0 < found[row]["share"] < 1 and found[row]["precision"] == "float32" for row in rows[:2])
    assert table.read_text().splitlines()[2:] == capsys.readouterr().out.splitlines()[-4:-1]
    parts = {
        "build": {"rate": 19236 / 60},
        "cached": {"rate": 50 * 28225 / 120},
        "validation": {"rate": 4181 * 50 / 60},
    }
    assert "rows: 4.0 minutes (cache 1.0, training 2.0, validation 1.0)" in whole_training(parts)


def test_only_rows_from_the_cache_take_its_place(tmp_path):
    from speed_rows import Row

    from sprc.core.runtime import choose_runtime

    flags = {
        "folder": tmp_path,
        "steps": 1,
        "backbone": "tiny",
        "micro_batch": None,
        "num_workers": 0,
        "cache_device": "cuda",
    }
    for name, place in {"upstream": "cpu", "plain+regions": "cpu", "cached": "cuda", "validation": "cuda"}.items():
        row = Row(Namespace(row=name, **flags), 2, choose_runtime("cpu"))
        assert row.config.cache_device == place
