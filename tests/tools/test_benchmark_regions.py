"""The comparison of region losses: its box files, baselines, table and plan; and a small one from end to end."""

import math
import os
import random
import statistics
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import benchmark_regions
import pytest
import region_arms
import region_datasets
import region_models
import region_runs
import region_table
import torch
from benchmark_regions import build_parser, complete, tables
from hypothesis import given, settings
from hypothesis import strategies as st
from region_arms import ARMS, BIAS, IDEAS, WINNER, Arm, BoxSource, WarmUp, Weight
from region_datasets import Cirr, Demo
from region_plan import chosen_setting, plan, trials
from region_regimes import PRETRAINED, REGIMES, SCRATCH, STAGES
from region_runs import validated_every
from region_table import (
    STARTED,
    Row,
    against,
    append_rows,
    final_rows,
    longer_table,
    markdown,
    not_started,
    not_started_text,
    paired_difference,
    read_rows,
    steps_to_reach,
    trials_table,
)

import blip_fine_tune_2
import blip_validate
from lavis.datasets.region_boxes import Region, load_boxes, read_box_file
from lavis.models import load_model
from lavis.models.blip2_models.foreground import patches_in_boxes
from sprc.core.errors import InputError
from sprc.core.reading import read_json
from sprc.training.config import LAST_FILE, REGION_WEIGHTS, TrainConfig
from sprc.training.run_inputs import file_fingerprint

SOURCE = BoxSource(0, lambda name: None)
BOXES = {f"image-{i}": [Region((0.01 * i, 0.2, 0.01 * i + 0.3, 0.6)), Region((0.1, 0.1, 0.2, 0.2))] for i in range(50)}


def row(arm="none", seed=0, step=100, recall=30.0, **changes) -> Row:
    base = Row("report", arm, seed, 2e-3, "", 100, step, recall, 60.0, 75.0, 55.0, 1.0, "a machine", "2026-11-24")
    return replace(base, **changes)


# --- box files --------------------------------------------------------------------------------------------------------


def test_permuted_boxes_are_the_same_boxes_elsewhere():
    found = region_arms.permuted(BOXES, SOURCE)
    assert all(found[name] != BOXES[name] for name in BOXES)
    assert sorted(map(str, found.values())) == sorted(map(str, BOXES.values()))
    assert found == region_arms.permuted(BOXES, SOURCE)
    assert found != region_arms.permuted(BOXES, BoxSource(1, SOURCE.image_path))


def test_boxes_on_background_touch_no_true_box():
    rng = random.Random(0)
    corners = [(rng.uniform(0, 0.6), rng.uniform(0, 0.6)) for _ in range(300)]
    boxes = {
        f"{i}": [Region((x, y, x + 0.35, y + 0.3)), Region((0.5, 0.5, 0.7, 0.7))] for i, (x, y) in enumerate(corners)
    }
    found = region_arms.on_background(boxes, SOURCE)
    assert found == region_arms.on_background(boxes, SOURCE)
    moved = [(a, b.box) for name in boxes for a in (r.box for r in found[name]) for b in boxes[name]]
    assert all(0 <= a[0] < a[2] <= 1 and 0 <= a[1] < a[3] <= 1 for a, _ in moved)
    assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a, b in moved)
    assert sum(map(len, found.values())) > 550
    assert region_arms.on_background({"full": [Region((0.0, 0.0, 1.0, 1.0))]}, SOURCE) == {"full": []}


def test_whole_image_and_grid_know_nothing_of_the_image():
    assert {str(regions) for regions in region_arms.whole_image(BOXES, SOURCE).values()} == {
        str([Region((0.0, 0.0, 1.0, 1.0))])
    }
    (cells,) = {tuple(region.box for region in regions) for regions in region_arms.fixed_grid(BOXES, SOURCE).values()}
    assert len(cells) == 9
    assert sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in cells) == pytest.approx(1)


def test_foreground_sees_a_grid_as_one_box():
    """Why it has no arm with a grid: what any of the boxes has is everything."""
    everywhere = torch.tensor([region.box for region in region_arms.fixed_grid(BOXES, SOURCE)["image-0"]])
    owners = torch.zeros(len(everywhere), dtype=torch.long)
    assert all(patches_in_boxes(everywhere, owners, 1, (side, side)).all() for side in (6, 8, 16))
    assert "foreground-grid" not in ARMS


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), jitter=st.floats(0, 2), missed=st.floats(0, 1), spurious=st.floats(0, 1))
def test_detector_like_boxes_are_valid(seed, jitter, missed, spurious):
    source = BoxSource(seed, SOURCE.image_path)
    found = region_arms.detector_like(BOXES, source, jitter, missed, spurious)
    for regions in found.values():
        for x1, y1, x2, y2 in (region.box for region in regions):
            assert 0 <= x1 < x2 <= 1
            assert 0 <= y1 < y2 <= 1


def test_detector_like_boxes_miss_move_and_invent():
    many = {f"{i}": BOXES["image-7"] for i in range(2000)}
    found = region_arms.detector_like(many, SOURCE, jitter=0.1, missed=0.2, spurious=0.2)
    assert statistics.fmean(map(len, found.values())) == pytest.approx(2 * (0.8 + 0.2), abs=0.1)
    kept = region_arms.detector_like(many, SOURCE, jitter=0.1, missed=0, spurious=0)
    moves = [region.box[0] - 0.07 for regions in kept.values() for region in regions[:1]]
    assert statistics.pstdev(moves) == pytest.approx(0.1 * 0.3, rel=0.1)
    assert region_arms.detector_like(many, SOURCE, 0, 0, 0) == many


def test_box_files_are_made_once_and_load(demo, tmp_path):
    true_file = demo / "boxes" / "cirr_boxes_train.json"
    source = BoxSource(0, region_arms.image_paths(demo))
    assert region_arms.box_file_of("none", true_file, source, tmp_path) is None
    assert region_arms.box_file_of("tokens", true_file, source, tmp_path) == true_file
    for name in ("permuted", "background", "whole", "grid", "detector", "saliency"):
        path = region_arms.box_file_of(name, true_file, source, tmp_path)
        assert load_boxes(path).keys() == load_boxes(true_file).keys()
        assert read_box_file(path).frame is None, "that of the true file, which does not say it"
        written = path.stat().st_mtime_ns
        assert region_arms.box_file_of(name, true_file, source, tmp_path).stat().st_mtime_ns == written
    assert any(load_boxes(tmp_path / "boxes_saliency.json").values())


# --- baselines --------------------------------------------------------------------------------------------------------


def test_the_baselines_see_one_half_of_the_question(small_yaml):
    images = torch.randn(2, 2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    texts = (["make it red", "remove it"], ["add a square", "two of them"])

    def query(model, image, text):
        return model.extract_query_features(model.encode_images(images[image]), texts[text])

    for name, sees_image, sees_text in (
        ("blip2_cir_text_only", False, True),
        ("blip2_cir_image_only", True, False),
        ("blip2_cir_align_prompt", True, True),
    ):
        torch.manual_seed(0)
        model = load_model(name, small_yaml, is_eval=True)
        assert torch.equal(query(model, 0, 0), query(model, 1, 0)) != sees_image
        assert torch.equal(query(model, 0, 0), query(model, 0, 1)) != sees_text


def test_the_changed_region_is_the_one_that_no_reference_region_is_like():
    reference = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    target = torch.tensor([[5.0, 0.0, 0.1], [0.3, 0.0, 1.0], [0.0, 1.0, 0.5]])
    boxes = [[0, 0, 1, 1], [0, 0, 0.5, 1], [0, 0, 1, 0.5]]
    assert region_models.least_like(reference, target, boxes) == boxes[1:2]
    assert region_models.least_like(reference[:0], target, boxes) is boxes
    assert region_models.least_like(reference, target[:0], []) == []


def test_the_arm_of_changed_regions_reads_only_their_boxes(small_yaml):
    torch.manual_seed(0)
    model = load_model("blip2_cir_changed_region", small_yaml, is_eval=True)
    model.region_objective = "tokens"
    reference = torch.randn(2, 17, model.config.vision.width, generator=torch.Generator().manual_seed(0))
    target = reference.clone()
    target[:, -1] *= -1  # the last patch, of the lower right corner, has changed
    boxes = [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0.75, 0.75, 1, 1]]
    loss = partial(model.compute_region_loss, reference, target, [boxes] * 2)
    model_of_all = load_model("blip2_cir_align_prompt", small_yaml, is_eval=True)
    model_of_all.load_state_dict(model.state_dict())
    assert loss([boxes] * 2) == loss([boxes[2:]] * 2) > 0
    assert model_of_all.compute_region_loss(reference, target, None, [boxes] * 2) != loss([boxes] * 2)


# --- the table --------------------------------------------------------------------------------------------------------


def test_rows_survive_the_csv_file(tmp_path):
    path, rows = tmp_path / "rows.csv", [row(), row("compose", 3, loss_region="0.5 to 0 at 0.5")]
    append_rows(path, rows[:1])
    append_rows(path, rows[1:])
    assert read_rows(path) == rows
    assert read_rows(tmp_path / "absent.csv") == []
    path.write_text(path.read_text().replace(",30.0,", ",thirty,", 1))
    with pytest.raises(InputError, match=r"rows.csv, line 2: .*thirty"):
        read_rows(path)


APPEND = """
import sys
from pathlib import Path
from region_table import append_rows, read_rows
path = Path(sys.argv[1])
row = read_rows(path)[0]
for _ in range(40):
    append_rows(path, [row])
"""


@pytest.mark.integration
def test_rows_that_two_processes_append_are_all_there(warm, tmp_path):
    """As two benchmarks with one CSV file do."""
    path = tmp_path / "rows.csv"
    append_rows(path, [row()])
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    for process in [warm("-c", APPEND, path, **paths) for _ in range(2)]:
        assert process.finished().returncode == 0
    assert len(read_rows(path)) == 81
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.csv"]


def test_paired_differences_are_those_of_the_seeds_of_both():
    first = {seed: row("compose", seed, recall=value) for seed, value in enumerate((31.0, 33.0, 38.0))}
    second = {seed: row("none", seed, recall=value) for seed, value in ((0, 30.0), (1, 30.0), (2, 32.0), (9, 0.0))}
    mean, half = paired_difference(first, second, "recall_at1")
    assert mean == pytest.approx(10 / 3)
    assert half == pytest.approx(4.303 * statistics.stdev((1, 3, 6)) / math.sqrt(3), rel=1e-3)
    assert paired_difference({0: first[0]}, second, "recall_at1") == (1.0, math.inf)
    assert math.isnan(paired_difference({5: first[0]}, second, "recall_at1")[0])


def test_the_table_and_its_words():
    rows = [row(seed=seed, recall=30 + seed) for seed in (0, 1)]
    rows += [row(WINNER, seed, step, recall) for seed in (0, 1) for step, recall in ((50, 30.0), (100, 36.0 + seed))]
    table = markdown(rows).splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["`none`", f"`{WINNER}`"]
    assert "| 36.50 |" in table[3]
    assert "+6.00 ± 0.00" in table[3]
    assert "54 of 100" in table[3]  # 30.5 lies between 30 at 50 and 36.5 at 100
    assert markdown([*rows, row(seed=9, recall=90.0)]).splitlines()[3] == table[3]  # a seed without its pair
    assert "no seed in common" in markdown([row(seed=9), *rows[2:]])
    assert "+6.00 ± 0.00" in against(rows, WINNER, ["none", "permuted"])
    assert against(rows, WINNER, ["permuted"]) == ""
    with pytest.raises(InputError, match="no run of the arm none that has started"):
        markdown(rows[2:])
    with pytest.raises(InputError, match="rows of two settings"):
        final_rows([*rows, row(seed=2, learning_rate=1.0)])


def test_a_run_that_never_starts_is_counted_and_in_no_mean():
    rows = [row(seed=seed, recall=30.0) for seed in range(3)] + [row(WINNER, seed, recall=35.0) for seed in range(3)]
    rows += [row(seed=3, recall=STARTED - 0.1), row(WINNER, 3, recall=40.0), row("text", 0, recall=1.0)]
    rows += [row("whole", 0, recall=0.5)]
    none, winner, text = (line.split("|")[2:4] for line in markdown(rows).splitlines()[2:])
    assert (none, text) == ([" 3 (1 not started) ", " 30.00 "], [" 1 ", " 1.00 "])
    assert winner == [" 4 ", " 36.25 "]
    assert "+5.00 ± 0.00" in against(rows, WINNER, ["none"]), "seed 3 has no pair"
    assert not_started(rows) == {"none": [3], "whole": [0]}
    assert not_started_text(rows).endswith("in no mean: `none` seed 3; `whole` seed 0")
    assert not_started_text(rows[:3]) == ""


def test_the_table_of_longer_runs():
    rows = [row(seed=seed, recall=30.0 + seed) for seed in (0, 1, 2)]
    rows += [row(seed=seed, recall=30.5 + seed, stage="longer", steps=150, step=150) for seed in (0, 1)]
    rows += [row(seed=seed, recall=32.5 + seed, stage="longer", steps=150, step=100) for seed in (0, 1)]
    assert longer_table(rows).splitlines()[2:] == [
        "| `none` | 2 | step 150 over 100 | -2.00 ± 0.00 | +0.00 ± 0.00 | +0.00 ± 0.00 | +0.00 ± 0.00 |",
        "| `none` | 2 | runs of 150 over runs of 100 | +0.50 ± 0.00 | +0.00 ± 0.00 | +0.00 ± 0.00 | +0.00 ± 0.00 |",
    ]
    assert len(longer_table(rows[:3]).splitlines()) == 2
    chosen = [replace(given, stage="chosen") if given.stage == "report" else given for given in rows]
    fresh = [row(seed=seed, learning_rate=1e-3) for seed in (200, 201)]
    assert longer_table(fresh + chosen) == longer_table(rows)


def test_the_table_of_trials():
    rows = [row(WINNER, 101, stage="tune", loss_region="0.5", recall=31.0)]
    rows += [row(WINNER, 100, stage="tune", loss_region=weight) for weight in ("0.5", "1")]
    rows += [row("none", 100, stage="tune"), row("none", step=50)]
    assert trials_table(rows).splitlines()[2:] == [
        "| `none` | 0.002 |  | 100 | 30.00 | 60.00 | 75.00 | 55.00 |",
        f"| `{WINNER}` | 0.002 | 0.5 | 100, 101 | 30.50 | 60.00 | 75.00 | 55.00 |",
        f"| `{WINNER}` | 0.002 | 1 | 100 | 30.00 | 60.00 | 75.00 | 55.00 |",
    ]


def test_steps_to_reach():
    rows = [
        row("none", step=step, recall=recall, steps=300) for step, recall in ((100, 10.0), (200, 20.0), (300, 15.0))
    ]
    assert steps_to_reach(rows, "none", 5) == 50
    assert steps_to_reach(rows, "none", 15) == 150
    assert steps_to_reach(rows, "none", 21) == math.inf
    assert steps_to_reach([row(recall=0.0)], "none", 0.0) == 100


# --- the plan ---------------------------------------------------------------------------------------------------------


def arguments(*flags):
    return complete(build_parser().parse_args(["--device", "cpu", *flags]))


def test_every_arm_has_as_many_trials_and_the_first_is_the_default():
    for regime in REGIMES.values():
        assert len({len(trials(name, regime)) for name, arm in ARMS.items() if arm.like is None}) == 1
    for name, arm in ARMS.items():
        if arm.objective not in (None, BIAS):
            default = REGION_WEIGHTS[arm.objective]
            assert arm.weights[0] == Weight(default.start, default.until), name
    assert TrainConfig(dataset="CIRR").region_objective == WINNER


def test_the_tuned_setting_is_taken_and_its_seeds_are_others():
    rows = [row(WINNER, 100, stage="tune", loss_region=str(weight), recall=recall)
            for weight, recall in zip(ARMS[WINNER].weights, (20.0, 25.0, 22.0), strict=True)]  # fmt: skip
    assert chosen_setting(WINNER, rows)[1] == ARMS[WINNER].weights[1]
    assert chosen_setting(WINNER, [])[1] == ARMS[WINNER].weights[0]
    for regime in REGIMES.values():
        rows = read_rows(regime.csv)
        assert {given.stage for given in rows} <= set(STAGES)
        looked_at = {given.seed for given in rows if given.stage in ("tune", "chosen")}
        assert not set(regime.report_seeds) & (looked_at | set(regime.tune_seeds))
        assert {given.seed for given in rows if given.stage == "report"} <= set(regime.report_seeds)


def test_an_arm_like_another_has_what_was_chosen_for_it():
    weights = ARMS["compose"].weights
    rows = [row("compose", 100, stage="tune", loss_region=str(weights[1]), recall=25.0)]
    for arm in ("fast", "started"):
        assert chosen_setting(arm, rows) == chosen_setting("compose", rows) == (2e-3, weights[1])
    args = arguments("--ideas", "--seeds", "101")
    assert {job.arm: (job.learning_rate, job.weight) for job in plan(args, rows)}["fast"] == (2e-3, weights[1])
    with pytest.raises(InputError, match="arm `fast` has the setting of `compose`: try it with `ideas`"):
        arguments("--tune", "--arms", "fast")


def test_ideas_are_run_on_tuning_seeds_beside_what_they_are_set_against():
    args = arguments("--ideas")
    assert args.seeds == REGIMES["scratch"].tune_seeds
    assert {arm for pair in IDEAS.items() for arm in (pair[0], *pair[1])} == set(args.arms)
    assert {name for name, arm in ARMS.items() if arm.like and not arm.seen and arm.make_boxes is None} <= set(
        args.arms
    ), "each has been tried"
    rows = [row("warm", 100, stage="ideas", recall=32.0), row("warm-none", 100, stage="ideas", recall=31.0)]
    assert "| `warm-none` | 1 | +1.00 (one seed) |" in tables("ideas", [*rows, row("none", 100, stage="ideas")])


def test_what_is_in_the_csv_file_is_not_run_again():
    args = arguments("--arms", "none", WINNER, "--seeds", "0", "1")
    assert [(job.seed, job.arm) for job in plan(args, [])] == [(0, "none"), (0, WINNER), (1, "none"), (1, WINNER)]
    done = [row(), row(WINNER, 1, loss_region=str(ARMS[WINNER].weights[0])), row("none", 1, step=50)]
    assert [(job.seed, job.arm) for job in plan(args, done)] == [(0, WINNER), (1, "none")]
    tuned = plan(arguments("--tune"), [])
    assert len(tuned) == len(SCRATCH.arms) * len(SCRATCH.tune_seeds) * len(trials("none"))
    assert arguments("--chosen").table


@given(epochs=st.integers(1, 300), most=st.integers(1, 9))
def test_the_last_epoch_is_always_validated(epochs, most):
    every = validated_every(epochs, most)
    assert every <= most and (epochs - 1) % every == 0
    assert not any((epochs - 1) % more == 0 for more in range(every + 1, most + 1))


def test_the_committed_rows_are_validated_in_every_sixth_epoch():
    assert {validated_every(epochs, Demo.most_between) for epochs in SCRATCH.epochs.values()} == {6}


def test_a_longer_run_is_validated_where_the_usual_one_ends():
    for regime in REGIMES.values():
        usual, longer = regime.epochs["report"], regime.epochs["longer"]
        assert (usual - 1) % validated_every(longer, Demo.most_between) == 0
        assert longer == pytest.approx(1.5 * usual, abs=1)


def test_a_regime_has_settings_seeds_and_files_of_its_own(tmp_path):
    arms = ("--arms", "none", WINNER)
    args = arguments("--regime", "pretrained", "--photos", str(tmp_path), *arms)
    jobs = plan(args, [])
    assert [job.seed for job in jobs[::2]] == list(PRETRAINED.report_seeds)
    assert {(job.learning_rate, job.epochs) for job in jobs} == {
        (PRETRAINED.learning_rates[0], PRETRAINED.epochs["report"])
    }
    assert {job.learning_rate for job in plan(arguments(*arms), [])} == {SCRATCH.learning_rates[0]}
    assert args.csv == PRETRAINED.csv != arguments().csv
    own = replace(PRETRAINED, weights={WINNER: (Weight(7.0), Weight(8.0))})
    rate = PRETRAINED.learning_rates[0]
    assert trials(WINNER, own) == trials("permuted", own) == [(rate, Weight(7.0)), (rate, Weight(8.0))]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--photos", "p"], "`photos` is for `regime` pretrained"),
        (["--random-encoder"], "`random_encoder` is for `regime` pretrained"),
        (["--regime", "pretrained"], "`regime` pretrained needs `photos`"),
        (["--regime", "pretrained", "--data-path", "d", "--box-file", "b"], "leave it out with `data_path`"),
        (["--chosen", "--regime", "pretrained"], "`chosen` is of the scenes cluttered"),
        (["--chosen", "--difficulty", "plain"], "nothing was chosen on others"),
        (["--sheet", "s.jpg"], r"`sheet` .*s\.jpg is written as PNG"),
    ],
)
def test_flags_of_two_regimes_do_not_go_together(flags, message):
    with pytest.raises(InputError, match=message):
        arguments(*flags)


def test_a_box_file_needs_a_dataset(tmp_path):
    with pytest.raises(InputError, match="--data-path and --box-file together"):
        arguments("--box-file", str(tmp_path))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--schedule-epochs", "3", "--num-epochs", "4"], "`schedule_epochs` 3 is less"),
        (["--warmup", "1"], "`warmup` is a part"),
        (["--use-region-loss", "--box-file", "b.json", "--loss-region-until", "0.5"], "beside `loss_region`"),
        (["--use-region-loss", "--box-file", "b", "--loss-region", "1", "--loss-region-until", "2"], "up to 1"),
    ],
)
def test_wrong_schedules_are_answered_at_start(flags, message):
    with pytest.raises(InputError, match=message):
        blip_fine_tune_2.main(["--dataset", "CIRR", *flags])


def test_the_schedule_is_planned_as_asked(tmp_path):
    assert TrainConfig(dataset="CIRR").schedule() == {"epochs": 80, "pct_start": 1 / 50}
    assert TrainConfig(dataset="CIRR", num_epochs=5, schedule_epochs=6, warmup=0.1).schedule() == {
        "epochs": 6,
        "pct_start": 0.1,
    }
    rising = TrainConfig(dataset="FashionIQ", num_epochs=30, schedule_epochs=60).schedule()
    assert rising["pct_start"] * rising["epochs"] == 1.5
    weights = TrainConfig(
        dataset="CIRR", use_region_loss=True, box_file=tmp_path, loss_region=0.2, loss_region_until=0.5
    ).loss_weights
    assert [weights(progress)["loss_region"] for progress in (0, 0.25, 0.5)] == [0.2, 0.1, 0]


# --- from end to end --------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_small_benchmark_on_generated_scenes(warm_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(region_runs, "subprocess", SimpleNamespace(run=warm_run))
    sizes = {"images": 60, "triplets": 128, "val_images": 12, "val_triplets": 20}
    monkeypatch.setattr(region_datasets, "DEMO", sizes)
    monkeypatch.setattr(region_table, "STARTED", 0.0)  # nothing is learned here
    flags = ["--device", "cpu", "--folder", str(tmp_path), "--csv", str(tmp_path / "rows.csv"), "--num-epochs", "1"]
    flags += ["--arms", "none", "permuted", "--seeds", "3"]
    benchmark_regions.main(flags)
    rows = read_rows(tmp_path / "rows.csv")
    assert {(row.arm, row.step, row.steps, row.loss_region) for row in rows} == {
        ("none", 2, 2, ""),
        ("permuted", 2, 2, "0.5 to 0 at 0.5"),
    }
    assert "- `permuted`: `compose`, boxes permuted" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "rows.png").stat().st_size > 1000
    monkeypatch.setattr(region_runs, "run_job", None)  # nothing is left to run
    benchmark_regions.main(flags)
    said = capsys.readouterr().out
    assert said.count("`compose`, boxes permuted") == 2
    assert said.endswith(f"plot {tmp_path / 'rows.png'}\n")


def test_an_arm_may_have_settings_of_its_own(demo, tmp_path):
    boxes = demo / "boxes" / "cirr_boxes_train.json"
    args = arguments("--data-path", str(demo), "--box-file", str(boxes), "--arms", "none", "none-0.1", "--seeds", "0")
    none, lighter = (region_runs.job_settings(job, Cirr(args), tmp_path / job.arm) for job in plan(args, []))
    assert "loss_rtc" not in none and TrainConfig(**none).plan.loss_rtc == 4 * lighter["loss_rtc"]
    assert TrainConfig(**none).plan.loss_align == 4 * lighter["loss_align"]


def test_the_folder_of_other_settings_is_left_alone(tmp_path):
    path = tmp_path / "settings.json"
    region_runs.write_settings(path, {"seed": 1})
    region_runs.write_settings(path, {"seed": 1})
    with pytest.raises(InputError, match="run with other settings"):
        region_runs.write_settings(path, {"seed": 2})


def train_in_here(command: list[str], **_unused) -> SimpleNamespace:
    region_runs.train_job(Path(command[-1]))
    return SimpleNamespace(returncode=0)


@pytest.mark.integration
def test_boxes_at_retrieval_have_the_weights_of_another_arm(tmp_path, monkeypatch):
    """On a small set of generated scenes; the row is what the command that users have says."""
    monkeypatch.setattr(region_table, "STARTED", 0.0)
    monkeypatch.setattr(region_runs, "subprocess", SimpleNamespace(run=train_in_here))
    few = {"images": 60, "triplets": 130, "val_images": 24, "val_triplets": 40}
    monkeypatch.setattr(region_datasets, "DEMO", region_datasets.DEMO | few)
    flags = ["--device", "cpu", "--folder", str(tmp_path), "--csv", str(tmp_path / "rows.csv"), "--num-epochs", "2"]
    benchmark_regions.main([*flags, "--arms", "none", "bias", "bias+boxes", "bias-detector+boxes", "--seeds", "0"])
    rows = {row.arm: row for row in read_rows(tmp_path / "rows.csv") if row.is_last}
    assert rows.keys() == {"none", "bias", "bias+boxes", "bias-detector+boxes"}
    assert rows["bias+boxes"].setting == rows["bias"].setting
    metrics = {arm: [getattr(row, metric) for metric in region_table.METRICS] for arm, row in rows.items()}
    assert metrics["bias+boxes"] != metrics["bias"]
    assert sorted(path.parent.name for path in (tmp_path / "runs").glob("*/clip*")) == [
        "report-bias-0-0.002-4_to_0_at_0.5", "report-bias-detector-0-0.002-4_to_0_at_0.5", "report-none-0-0.002"
    ], "nothing is trained twice"  # fmt: skip
    root = tmp_path / "demo" / "seed-0"
    (weights,) = (tmp_path / "runs").glob("report-bias-0-*/*/saved_models/tuned_clip_last.pt")
    again = blip_validate.main(["--dataset", "CIRR", "--data-path", str(root), "--model-path", str(weights), "--device",
                                "cpu", "--box-file", str(root / "boxes" / "cirr_boxes_val.json")])  # fmt: skip
    assert [round(again[metric], 3) for metric in region_table.METRICS] == metrics["bias+boxes"]


@pytest.mark.integration
def test_the_same_table_on_a_dataset_on_disk(demo, small_yaml, tmp_path, capsys, monkeypatch):
    """Its runs are in this process."""
    monkeypatch.setattr(region_table, "STARTED", 0.0)  # nothing is learned here
    monkeypatch.setattr(region_runs, "subprocess", SimpleNamespace(run=train_in_here))
    monkeypatch.setitem(ARMS, "warm", Arm("warm", warm_up=WarmUp(1, 2.0, WINNER)))
    boxes = demo / "boxes" / "cirr_boxes_train.json"
    flags = ["--device", "cpu", "--folder", str(tmp_path), "--data-path", str(demo), "--box-file", str(boxes)]
    flags += ["--backbone", small_yaml, "--batch-size", "8", "--learning-rate", "1e-3", "--num-epochs", "3"]
    flags += ["--num-workers", "0"]
    benchmark_regions.main([*flags, "--arms", "none", WINNER, "warm", "--seeds", "0"])
    rows = read_rows(tmp_path / "rows.csv")
    assert {(row.arm, row.learning_rate) for row in rows} == {("none", 1e-3), (WINNER, 1e-3), ("warm", 1e-3)}
    assert {row.step / row.steps for row in rows} == {1 / 3, 1}
    assert f"`{WINNER}`" in capsys.readouterr().out
    runs = (tmp_path / "runs").glob("*/settings.json")
    boxes_of = {path.parent.name.split("-")[1]: read_json(path, dict, "")["boxes"] for path in runs}
    assert boxes_of["none"] is None and boxes_of["warm"] == boxes_of[WINNER] == file_fingerprint(boxes)
    (warmed,) = (tmp_path / "runs").glob("*warm*/*/training_hyperparameters.json")
    before = Path(read_json(warmed, dict, "", paths=True)["weights"])
    first = read_json(before.parents[1] / warmed.name, dict, "", paths=True)
    assert (before.parents[2], before.name) == (warmed.parents[1] / "warm_up", LAST_FILE)
    assert (first["learning_rate"], first["num_epochs"], first["region_objective"]) == (2e-3, 1, WINNER)


def test_all_stages_share_a_file_of_rows():
    """The report sees what --tune has found, and --longer what the report has."""
    files = {arguments("--difficulty", "plain", *flag).csv for flag in ([], ["--tune"], ["--longer"])}
    assert files == {benchmark_regions.DATA / "plain" / "rows.csv"}
    assert arguments("--tune").csv == arguments().csv == benchmark_regions.CSV


@pytest.mark.integration
def test_a_run_that_fails_names_its_log(warm_run, demo, small_yaml, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(region_runs, "subprocess", SimpleNamespace(run=warm_run))
    boxes = demo / "boxes" / "cirr_boxes_train.json"
    flags = ["--device", "cpu", "--folder", str(tmp_path), "--data-path", str(demo), "--box-file", str(boxes)]
    flags += ["--backbone", small_yaml, "--batch-size", "100000", "--num-epochs", "1", "--arms", "none", "--seeds", "0"]
    flags += ["--num-workers", "0"]
    with pytest.raises(InputError, match=r"report-none-0-1e-05 failed, status 2: see .*log\.txt"):
        benchmark_regions.main(flags)
    assert "lower it" in (tmp_path / "runs" / "report-none-0-1e-05" / "log.txt").read_text()
    assert "log.txt; waiting for the runs under way" in capsys.readouterr().err
