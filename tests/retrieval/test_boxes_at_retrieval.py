"""Boxes at retrieval: a score is the mean of what is seen whole and what is seen through boxes."""

import json
from pathlib import Path

import pytest
import torch

import blip_validate
import cirr_test_submission
from data_utils import targetpad_transform
from lavis.models import load_model_and_preprocess
from lavis.models.blip2_models.foreground import patches_in_boxes
from lavis.models.blip2_models.region import PREFIX_TOKENS
from lavis.models.checkpoint import save_model
from sprc.benchmarks.cirr import CIRR
from sprc.core.errors import InputError
from sprc.core.runtime import choose_runtime
from sprc.data.options import BoxOptions
from sprc.retrieval.evaluation import Evaluator
from sprc.retrieval.options import Scoring


@pytest.fixture(scope="module")
def model_and_texts(small_yaml):
    torch.manual_seed(0)
    model, _, texts = load_model_and_preprocess("blip2_cir_align_prompt", small_yaml, is_eval=True)
    return model, texts["eval"]


@pytest.fixture
def box_file(demo, tmp_path) -> Path:
    """The boxes of the validation images, two of which have none."""
    boxes = json.loads((demo / "boxes" / "cirr_boxes_val.json").read_text())
    names = [name for name in boxes if not name.startswith("__")]
    boxes |= {name: [] for name in names[:2]}
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(boxes))
    return path


def only_task(validation):
    (task,) = validation.tasks.values()
    return task


def seen(model, embeds, boxes):
    """The tokens (1, n, D) of one image (1, P + 1, D) that its boxes leave; all of them without boxes."""
    if len(boxes) == 0:
        return embeds
    inside = patches_in_boxes(boxes, torch.zeros(len(boxes), dtype=torch.long), 1, model.own_grid(embeds))[0]
    return embeds[:, PREFIX_TOKENS:][:, inside]


def test_scores_are_the_mean_of_two_views_one_image_at_a_time(model_and_texts, demo, box_file):
    """The slow way sees through boxes by leaving tokens out."""
    model, process = model_and_texts
    task = only_task(CIRR(demo).validation(targetpad_transform(dim=56)).with_boxes(BoxOptions(box_file)))
    found = Evaluator(model, process, Scoring(5, 0, 0.01), choose_runtime("cpu")).score(task)
    images = [model.encode_images(task.gallery[i][1][None]) for i in range(len(task.gallery))]
    inside = [seen(model, e, boxes) for e, boxes in zip(images, task.boxes_of(task.gallery.names), strict=True)]
    hidden = [part.shape != whole.shape for part, whole in zip(inside, images, strict=True)]
    assert len(hidden) - 3 <= sum(hidden) <= len(hidden) - 2, "two have no boxes, and one may have too small ones"
    galleries = [torch.cat([model.target_tokens(view) for view in views]) for views in (images, inside)]
    for query, (name, sentence) in enumerate(zip(task.reference_names, task.sentences, strict=True)):
        row = task.gallery.names.index(name)
        text = [process(sentence)]
        scores = [model.inference(views[row], tokens, text)
                  for views, tokens in zip((images, inside), galleries, strict=True)]  # fmt: skip
        torch.testing.assert_close(found[query], (scores[0] + scores[1])[0] / 2, atol=1e-5, rtol=0)


def test_images_without_any_box_have_the_scores_of_whole_images(model_and_texts, demo, box_file, tmp_path):
    model, process = model_and_texts
    evaluator = Evaluator(model, process, Scoring(7, 0), choose_runtime("cpu"))
    validation = CIRR(demo).validation(targetpad_transform(dim=56))
    none = tmp_path / "none.json"
    none.write_text(json.dumps({name: [] for name in only_task(validation).gallery.names}))
    whole, empty, boxed = (
        evaluator.score(only_task(validation.with_boxes(boxes and BoxOptions(boxes))))
        for boxes in (None, none, box_file)
    )
    torch.testing.assert_close(empty, whole, atol=1e-5, rtol=0)
    assert (boxed - whole).abs().max() > 1e-3


@pytest.fixture
def flags(model_and_texts, demo, small_yaml, tmp_path) -> list[str]:
    save_model(model_and_texts[0], 0, tmp_path / "model.pt")
    return ["--data-path", str(demo), "--model-path", str(tmp_path / "model.pt"), "--backbone", small_yaml,
            "--device", "cpu", "--num-workers", "0"]  # fmt: skip


def test_commands_read_boxes(flags, demo, box_file, tmp_path, capsys):
    without = blip_validate.main(["--dataset", "CIRR", *flags])
    assert "also seen" not in capsys.readouterr().out
    boxed = blip_validate.main(["--dataset", "CIRR", *flags, "--box-file", str(box_file)])
    assert f"also seen through the boxes of {box_file}" in capsys.readouterr().out
    assert boxed.keys() == without.keys()
    assert boxed != without
    cached = ["--feature-cache", str(tmp_path / "cache"), "--cache-precision", "fp32"]
    again = blip_validate.main(["--dataset", "CIRR", *flags, "--box-file", str(box_file), *cached])
    assert again == pytest.approx(boxed, abs=1e-6)
    one_box = blip_validate.main(["--dataset", "CIRR", *flags, "--box-file", str(box_file), "--max-regions", "1"])
    assert one_box != boxed
    boxes = str(demo / "boxes" / "cirr_boxes_test1.json")
    files = [
        cirr_test_submission.main([*flags, "--output-folder", str(tmp_path / kind), *more])
        for kind, more in (("whole", []), ("boxed", ["--box-file", boxes]))
    ]
    whole, seen_too = ([path.read_text() for path in paths] for paths in files)
    assert whole != seen_too


def test_boxes_of_other_images_are_refused(flags, demo, box_file, tmp_path):
    train = demo / "boxes" / "cirr_boxes_train.json"
    with pytest.raises(InputError, match=r"cirr_boxes_train\.json shares no image name with CIRR val"):
        blip_validate.main(["--dataset", "CIRR", *flags, "--box-file", str(train)])
    with pytest.raises(InputError, match="`max_regions` has no effect without `box_file`"):
        blip_validate.main(["--dataset", "CIRR", *flags, "--max-regions", "2"])
    wrong = tmp_path / "wrong.json"
    wrong.write_text(box_file.read_text().replace("[[", "[[-", 1))
    with pytest.raises(InputError, match=r"wrong\.json: image .* outside \[0, 1\]"):
        blip_validate.main(["--dataset", "CIRR", *flags, "--box-file", str(wrong)])
    boxes = json.loads(box_file.read_text())
    removed = [name for name in boxes if not name.startswith("__")][5]
    del boxes[removed]
    wrong.write_text(json.dumps(boxes))
    with pytest.raises(InputError, match=rf"wrong\.json lacks 1 of 18 images of CIRR val, first {removed}: make boxes"):
        blip_validate.main(["--dataset", "CIRR", *flags, "--box-file", str(wrong)])
