"""The tool from a checkpoint to sheets, on CIRR and FashionIQ, and what is said about wrong input."""

import json

import numpy as np
import pytest
import torch
import visualize_retrieval
from PIL import Image

from lavis.models import load_model
from lavis.models.checkpoint import save_model
from sprc.core.errors import InputError
from sprc.report import failures, rankings
from sprc.retrieval.checkpoint_run import evaluation_config

OF_EVALUATION = ("dataset", "data_path", "backbone", "model_path", "num_workers", "device")


@pytest.fixture(scope="module")
def checkpoints(small_yaml, tmp_path_factory):
    """Two models with random weights."""
    folder = tmp_path_factory.mktemp("weights")
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_model(load_model("blip2_cir_align_prompt", small_yaml), 0, folder / f"{seed}.pt")
    return [folder / "0.pt", folder / "1.pt"]


@pytest.fixture
def flags(checkpoints, demo, small_yaml, tmp_path):
    return ["--dataset", "CIRR", "--data-path", str(demo), "--backbone", small_yaml,
            "--model-path", str(checkpoints[0]), "--num-workers", "0", "--device", "cpu",
            "--output", str(tmp_path / "s.png")]  # fmt: skip


def fashioniq(root):
    """Four images and two queries of each type."""
    for folder in ("captions", "image_splits", "images"):
        (root / folder).mkdir()
    for kind in ("dress", "shirt", "toptee"):
        names = [f"{kind}{n}" for n in range(4)]
        for n, name in enumerate(names):
            Image.new("RGB", (20, 30), (60 * n, 250 - 60 * n, 0)).save(root / "images" / f"{name}.png")
        entries = [{"candidate": names[n], "target": names[n + 1], "captions": ["is red", "is long"]} for n in (0, 1)]
        (root / "captions" / f"cap.{kind}.val.json").write_text(json.dumps(entries))
        (root / "image_splits" / f"split.{kind}.val.json").write_text(json.dumps(names))
    return root


def test_three_sheets_and_a_summary(flags, tmp_path, capsys):
    paths = visualize_retrieval.main([*flags, "--queries", "2", "--top-k", "3", "--heat-maps"])
    assert paths == [tmp_path / f"s_{kind}.png" for kind in ("best", "worst", "random")]
    said = capsys.readouterr().out
    assert "CIRR val: 30 queries, median rank " in said and said.endswith(f"sheet {paths[2]}\n")
    pictures = [np.asarray(Image.open(path)) for path in paths]
    assert len({picture.shape for picture in pictures}) == 1
    assert not np.array_equal(pictures[0], pictures[1])


def test_the_summary_is_that_of_the_validation(flags, capsys):
    from sprc.retrieval.evaluate_checkpoint import validate

    visualize_retrieval.main([*flags, "--queries", "1", "--kind", "mixed"])
    given = vars(visualize_retrieval.build_parser().parse_args(flags))
    config = evaluation_config({name: given[name] for name in OF_EVALUATION})
    _, metrics = validate(config)
    recalls = ", ".join(f"recall@{k} {metrics[f'recall_at{k}']:.2f}" for k in (1, 5, 10))
    assert f"{recalls}\n" in capsys.readouterr().out


def test_one_kind_is_one_file_the_same_with_cached_features(flags, tmp_path):
    flags += ["--kind", "mixed", "--queries", "2", "--heat-maps"]
    assert visualize_retrieval.main(flags) == [tmp_path / "s.png"]
    plain = np.asarray(Image.open(tmp_path / "s.png")).astype(int)
    visualize_retrieval.main([*flags, "--feature-cache", str(tmp_path / "cache"), "--cache-precision", "fp32"])
    assert np.abs(np.asarray(Image.open(tmp_path / "s.png")) - plain).max() <= 1


def test_fashioniq(flags, tmp_path, capsys):
    root = tmp_path / "fiq"
    root.mkdir()
    flags[1], flags[3] = "FashionIQ", str(fashioniq(root))
    visualize_retrieval.main([*flags, "--kind", "worst", "--top-k", "9"])
    said = capsys.readouterr().out
    assert [said.count(f"{kind}: 2 queries, median rank") for kind in ("dress", "shirt", "toptee")] == [1, 1, 1]
    assert (tmp_path / "s.png").is_file()


def test_two_checkpoints(flags, checkpoints, tmp_path, capsys, monkeypatch):
    loaded, sheets = [], {}
    load, draw = rankings.load_evaluator, failures.contact_sheet
    monkeypatch.setattr(
        rankings, "load_evaluator", lambda config, of: loaded.append(config.model_path) or load(config, of)
    )
    monkeypatch.setattr(
        failures,
        "contact_sheet",
        lambda rows, title, notes: sheets.update({title: (rows, notes)}) or draw(rows, title, notes),
    )
    paths = visualize_retrieval.main([*flags, "--against", str(checkpoints[1]), "--queries", "3", "--heat-maps"])
    assert paths == [tmp_path / "s_won.png", tmp_path / "s_lost.png"]
    assert loaded == [*checkpoints, checkpoints[0]]  # the second is still there when its maps are made
    for sign, (title, (rows, notes)) in zip((1, -1), sheets.items(), strict=True):
        ranks = [tuple(map(int, row.note.split("rank ")[1].split(" against "))) for row in rows]
        gains = [sign * (second - first) for first, second in ranks]
        assert gains == sorted(gains, reverse=True) and gains[-1] > 0
        assert [line.heading for line in rows[0].results] == [
            f"first: rank {ranks[0][0]} of 17", f"second: rank {ranks[0][1]} of 17"
        ]  # fmt: skip
        assert all(picture.heat is not None for row in rows for line in row.results for picture in line.pictures)
        assert notes[0] == f"first model: {checkpoints[0]}" and title.startswith("CIRR validation: 3 queries")
    assert capsys.readouterr().out.count("CIRR val: 30 queries, median rank") == 2


def test_a_checkpoint_against_itself_draws_nothing(flags, checkpoints, capsys):
    assert visualize_retrieval.main([*flags, "--against", str(checkpoints[0])]) == []
    assert "there is nothing to draw" in capsys.readouterr().out


def test_wrong_input_is_answered(flags, tmp_path):
    for more, says in (
        (["--output", "s.jpg"], r"ends in \.png"),
        (["--against", str(tmp_path / "none.pt")], "no checkpoint at .*as --against"),
        (["--against", "x.pt", "--kind", "best"], "--kind has no effect with --against"),
        (["--data-path", str(tmp_path / "none")], "no folder"),
    ):
        with pytest.raises(InputError, match=says):
            visualize_retrieval.main([*flags, *more])


def test_a_sheet_from_python(flags):
    given = vars(visualize_retrieval.build_parser().parse_args(flags))
    config = evaluation_config({name: given[name] for name in OF_EVALUATION})
    sheet = failures.validation_sheet(config, options=failures.SheetOptions(queries=1, top_k=2))
    assert isinstance(sheet, Image.Image)
