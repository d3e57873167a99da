import json

import benchmark_metrics
import pytest
import torch
from benchmark_metrics import (
    load_annotations,
    made_up_annotations,
    main,
    metric_names,
    naive_cirr_metrics,
    recipe_scores,
)
from warm import warm_context

from sprc.benchmarks.cirr import cirr_metrics
from sprc.core.errors import InputError


def test_missing_annotations_are_named(tmp_path):
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "cap.rc2.val.json").write_text("[]")
    with pytest.raises(InputError, match=r"missing: \S*split\.rc2\.val\.json; .*--synthetic"):
        load_annotations(tmp_path)
    with pytest.raises(InputError, match=r"missing: \S*cap\.rc2\.val\.json, \S*split\.rc2\.val\.json;"):
        main(["--annotations", str(tmp_path / "none")])


def test_recipe_gives_recalls_that_tell_a_wrong_metric():
    captions, names = made_up_annotations(queries=40, images=100)
    scores = torch.from_numpy(recipe_scores(captions, names))
    arguments = metric_names(captions, names)
    metrics = cirr_metrics(scores, **arguments)
    assert metrics == pytest.approx(naive_cirr_metrics(scores, **arguments))
    assert all(len(row.unique()) == len(names) for row in scores)
    assert scores.argmax(dim=1).tolist() == [names.index(name) for name in arguments["reference_names"]]
    assert 0 < metrics["recall_at1"] < metrics["recall_at10"] < metrics["recall_at50"] < 100


def test_made_up_annotations_have_the_size_of_cirr_val():
    captions, names = made_up_annotations()
    assert (len(captions), len(set(names))) == (4181, 2297)


@pytest.mark.integration
def test_main_prints_a_line_per_version_and_the_metrics(tmp_path, capfd, monkeypatch):
    """Its processes begin with torch loaded, which is not measured."""
    monkeypatch.setattr(benchmark_metrics, "get_context", lambda method: warm_context())
    captions, names = made_up_annotations(queries=10, images=20)
    for name, content in (("captions/cap", captions), ("image_splits/split", dict.fromkeys(names, "./dev/x.png"))):
        path = tmp_path / f"{name}.rc2.val.json"
        path.parent.mkdir()
        path.write_text(json.dumps(content))
    main(["--annotations", str(tmp_path), "--runs", "1", "--threads", "1", "--naive"])
    fast, slow, metrics = capfd.readouterr().out.splitlines()
    assert " | cirr_metrics: 0." in fast
    assert " s (median of 1), " in fast
    assert " | naive_cirr_metrics: " in slow
    assert metrics.startswith("group_recall_at1 ")
