"""A retriever finds what the evaluation of the same checkpoint ranks first, in any folder of photographs."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from training_flags import training_flags

from lavis.models import load_model
from lavis.models.checkpoint import save_model
from sprc.benchmarks.cirr import CIRR
from sprc.benchmarks.ranking import top_names
from sprc.core.errors import InputError
from sprc.demo.dataset import DemoSettings, make_demo_dataset
from sprc.retrieval.checkpoint_run import evaluation_config
from sprc.retrieval.evaluate_checkpoint import load_evaluator
from sprc.retrieval.loading import preprocess_of, scoring_fingerprint
from sprc.retrieval.retriever import Retriever
from sprc.retrieval.retriever_options import config_of_index

SETTINGS = DemoSettings(images=12, triplets=12, val_images=24, val_triplets=24, test_images=6, test_triplets=6)
REFERENCE = "dev-0-0-img0.png"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demo"
    make_demo_dataset(folder, SETTINGS)
    return folder


@pytest.fixture(scope="module")
def checkpoint(data, small_yaml, tmp_path_factory):
    """Of a run on this data, which pads to squares."""
    from blip_fine_tune_2 import main

    folder = tmp_path_factory.mktemp("runs")
    main(training_flags(data, small_yaml, folder, save_best=True, transform="squarepad"))
    return next(folder.iterdir()) / "saved_models" / "tuned_clip_arithmetic.pt"


@pytest.fixture(scope="module")
def index(checkpoint, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "dev"
    Retriever.from_checkpoint(checkpoint, num_workers=0).index(data / "dev", path)
    return path


@pytest.fixture(scope="module")
def retriever(index):
    return Retriever.from_index(index)


def test_it_finds_what_the_evaluation_ranks_first(retriever, checkpoint, data):
    """The order of all images, by the settings of the run: an index rounds tokens to float16, which may swap images
    that are so near.
    """
    given = {"dataset": "CIRR", "data_path": data, "model_path": checkpoint, "num_workers": 0, "device": "cpu"}
    config = evaluation_config(given)
    task = CIRR(data).validation(preprocess_of(config)).tasks["CIRR val"]
    scores = load_evaluator(config, [task.gallery]).score(task)
    expected = top_names(scores, task.gallery.names, 23, task.reference_names)
    references = [data / "dev" / f"{name}.png" for name in task.reference_names]
    found = retriever.search_batch(references, task.sentences, 23)
    for row, names, results in zip(scores, expected, found, strict=True):
        expected_scores = row[[task.gallery.index_of[name] for name in names]]
        own = row[[task.gallery.index_of[result.name.removesuffix(".png")] for result in results]]
        torch.testing.assert_close(torch.tensor([result.score for result in results]), own, atol=1e-3, rtol=0)
        torch.testing.assert_close(own, expected_scores, atol=1e-3, rtol=0)
        assert {result.name.removesuffix(".png") for result in results} == set(names)


def test_a_result_says_what_was_found(retriever, data):
    results = retriever.search(REFERENCE, "add a red circle", k=3)
    assert [result.rank for result in results] == [1, 2, 3]
    assert sorted((result.score for result in results), reverse=True) == [result.score for result in results]
    for result in results:
        assert result.path == (data / "dev").resolve() / result.name
        assert result.size == Image.open(result.path).size


def test_the_winning_token_is_that_of_the_model(retriever):
    result = retriever.search(REFERENCE, "add a red circle", k=1)[0]
    query = torch.from_numpy(retriever.encode_queries([REFERENCE], ["add a red circle"]))[0]
    cosines = retriever.model.target_tokens(retriever.encode_images([result.path]))[0] @ query
    assert int(cosines.argmax()) == result.token
    assert cosines.max().item() == pytest.approx(result.score, abs=1e-3)


def test_a_result_that_has_gone_is_named(retriever):
    found = retriever.search(REFERENCE, "add a red circle", k=2)
    gone = replace(found[1], path=found[1].path.with_name("gone.png"))
    with pytest.raises(InputError, match=r"the photograph .*gone\.png has gone: run the command index again"):
        retriever.look([found[0], gone])


def test_the_heat_map_is_that_of_the_winning_token(retriever):
    results = retriever.search(REFERENCE, "add a red circle", k=3)
    side = retriever.model.config.vision.grid_size
    for result, heat in zip(results, retriever.look(results), strict=True):
        attention = retriever.model.token_attention(retriever.encode_images([result.path]))
        assert heat.shape == (side, side)
        np.testing.assert_allclose(heat, attention[0, result.token].numpy(), atol=1e-6)


def test_the_reference_is_no_result_unless_it_is_asked_for(retriever, data, tmp_path):
    path, count = data / "dev" / REFERENCE, len(retriever.gallery)
    without = [result.name for result in retriever.search(path, "the same", count - 1)]
    assert REFERENCE not in without
    assert len(retriever.search(path, "the same", count, keep_reference=True)) == count
    copy = shutil.copy(path, tmp_path / "copy.png")
    assert len(retriever.search(copy, "the same", count)) == count  # it is no photograph of the index
    assert len(retriever.search(Image.open(copy), "the same", count)) == count


def test_a_link_to_a_photograph_is_that_photograph(retriever, data, tmp_path):
    link = tmp_path / "link.png"
    link.symlink_to(data / "dev" / REFERENCE)
    assert REFERENCE not in [result.name for result in retriever.search(link, "the same", len(retriever.gallery) - 1)]


@pytest.mark.parametrize("name", ["~nobody.png", "~/a.png"])
def test_a_name_may_begin_with_a_tilde(checkpoint, data, tmp_path, name):
    for place in (name, "b.png"):
        (tmp_path / "photos" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / "dev" / REFERENCE, tmp_path / "photos" / place)
    retriever = Retriever.from_checkpoint(checkpoint, num_workers=0)
    retriever.index(tmp_path / "photos", tmp_path / "index")
    assert [result.name for result in retriever.search(name, "the same", 1)] == ["b.png"]


def test_a_path_that_the_system_refuses_is_named(retriever):
    with pytest.raises(InputError, match=r"aaa cannot be read \(File name too long\)"):
        retriever.search("a" * 300, "the same", 1)


def test_no_query_has_no_results(retriever):
    assert retriever.search_batch([], []) == []


@pytest.mark.parametrize(("folder", "says"), [("nowhere", "no folder"), ("", "has none of the photographs")])
def test_a_folder_without_the_photographs_is_refused_and_the_index_stays_open(retriever, tmp_path, folder, says):
    before, photos = retriever.gallery, retriever.photos
    with pytest.raises(InputError, match=f"{says}.*`photos`"):
        retriever.open(before.path, tmp_path / folder)
    assert (retriever.gallery, retriever.photos) == (before, photos)


def test_an_engine_that_fails_leaves_the_index_before_open(checkpoint, data, tmp_path):
    retriever = Retriever.from_checkpoint(checkpoint, num_workers=0)
    retriever.index(data / "dev", tmp_path / "dev")
    retriever.index(data / "test1", tmp_path / "test")
    retriever.open(tmp_path / "dev")
    retriever.config = replace(retriever.config, engine="milvus")
    with pytest.raises(InputError, match="needs `uri`"):
        retriever.open(tmp_path / "test")
    assert retriever.gallery is retriever.engine.gallery
    assert retriever.search(data / "dev" / REFERENCE, "the same", 1)[0].name.startswith("dev")


@pytest.mark.parametrize("engine", ["auto", "exact"])
def test_an_address_without_milvus_is_refused(index, engine):
    with pytest.raises(InputError, match="`uri` has no effect without `engine` milvus"):
        config_of_index(index, {"engine": engine, "uri": "rows.db"})


def test_lists_that_cannot_be_made_are_refused_before_anything_is_encoded(checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.setattr("sprc.retrieval.retriever.find_spec", lambda name: None)
    retriever = Retriever.from_checkpoint(checkpoint, num_workers=0, ivf="always")
    with pytest.raises(InputError, match="`ivf` always needs faiss: pip install"):
        retriever.index(data / "dev", tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_more_results_than_photographs_are_refused(retriever):
    with pytest.raises(InputError, match="`top_k` is 24: the index has 23 photographs, without the reference"):
        retriever.search(REFERENCE, "the same", 24)


@pytest.mark.parametrize("text", ["", "  ", " ... !"])
def test_an_empty_sentence_is_refused(retriever, text):
    with pytest.raises(InputError, match="the sentence is empty"):
        retriever.search(REFERENCE, text, 1)


def test_a_sentence_that_the_model_cannot_read_is_refused(retriever):
    with pytest.raises(
        InputError, match="the model knows no word of '把圆变成红色': write the sentence in its language"
    ):
        retriever.search(REFERENCE, "把圆变成红色", 1)


def test_a_sentence_that_is_no_text_is_refused(retriever):
    with pytest.raises(InputError, match=r"the sentence 'red \\udcff' is not valid UTF-8"):
        retriever.search(REFERENCE, "red \udcff", 1)


def test_a_long_word_is_named_by_its_start(retriever, caplog):
    retriever.search(REFERENCE, "red " + "圆" * 10_000, 1)
    assert "圆" * 40 + ": the rest of the sentence counts" in caplog.text
    assert len(caplog.text) < 1000


def test_words_and_tokens_that_are_not_read_are_said(retriever, caplog):
    retriever.search(REFERENCE, "a red 圆 circle", 1)
    assert "the model does not know 圆: the rest of the sentence counts" in caplog.text
    caplog.clear()
    retriever.search(REFERENCE, "red " * 31, 1)
    assert "the sentence has 31 tokens, of which the model reads the first 30" in caplog.text
    caplog.clear()
    retriever.search(REFERENCE, "red " * 30, 1)
    assert caplog.text == ""


def test_no_such_image_is_refused(retriever):
    with pytest.raises(InputError, match=r"no image nowhere\.png: give a file, or the name of a photograph"):
        retriever.search("nowhere.png", "the same", 1)


def test_a_broken_image_is_refused(retriever, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.png' at .* cannot be read"):
        retriever.search(tmp_path / "broken.png", "the same", 1)


def test_an_index_remembers_backbone_and_preprocess(index, checkpoint, tmp_path):
    """The index alone says how its model is built, also for a checkpoint that lies elsewhere now."""
    moved = shutil.copy(checkpoint, tmp_path / "moved.pt")
    copied = shutil.copytree(index, tmp_path / "index", symlinks=True)
    (copied / "checkpoint").unlink()
    with pytest.raises(InputError, match="leads to no weights: give them as `model_path`"):
        Retriever.from_index(copied)
    retriever = Retriever.from_index(copied, model_path=moved)
    assert retriever.preprocess.target_ratio == 1.0
    assert len(retriever.gallery) == 24


def spoiled(index, folder, backbone: str):
    """A copy of an index whose file names another backbone."""
    copied = shutil.copytree(index, folder / "index", symlinks=True)
    head = json.loads((copied / "index.json").read_text())
    assert head["settings"]["backbone"] == "backbone.yaml"
    head["settings"]["backbone"] = backbone
    (copied / "index.json").write_text(json.dumps(head))
    return copied


@pytest.mark.parametrize("backbone", ["/etc/model.yaml", "../model.yaml", "../../tiny"])
def test_no_path_in_the_file_of_an_index_is_followed(index, tmp_path, backbone):
    with pytest.raises(InputError, match=r"the backbone .* is no name"):
        config_of_index(spoiled(index, tmp_path, backbone), {})


def test_the_backbone_is_the_copy_that_the_index_keeps(index, tmp_path):
    copied = spoiled(index, tmp_path, "other.yaml")
    assert config_of_index(copied, {}).backbone == str(copied / "backbone.yaml")
    (copied / "backbone.yaml").unlink()
    with pytest.raises(InputError, match=r"has lost its backbone\.yaml"):
        config_of_index(copied, {})


def test_an_index_of_other_weights_is_refused_with_both_names(index, small_yaml, tmp_path):
    torch.manual_seed(7)
    save_model(load_model("blip2_cir_align_prompt", small_yaml, weights="random"), 0, tmp_path / "other.pt")
    retriever = Retriever.from_checkpoint(tmp_path / "other.pt", backbone=small_yaml, transform="squarepad")
    with pytest.raises(InputError, match=r"is of .*tuned_clip_arithmetic\.pt .*not of other\.pt"):
        retriever.open(index)


def test_the_fingerprint_is_of_what_scores(small_yaml):
    torch.manual_seed(7)
    model = load_model("blip2_cir_align_prompt", small_yaml, weights="random")
    before = scoring_fingerprint(model)
    with torch.no_grad():
        model.temp.add_(1)
        assert scoring_fingerprint(model) == before
        model.text_proj.bias.add_(1)
        assert scoring_fingerprint(model) != before


def test_the_fingerprint_is_the_same_with_a_vit_in_half_precision(small_yaml):
    torch.manual_seed(7)
    model = load_model("blip2_cir_align_prompt", small_yaml, weights="random")
    before = scoring_fingerprint(model)
    model.use_half_precision_vit()
    assert scoring_fingerprint(model) == before


def test_no_index_is_open_at_first(checkpoint):
    with pytest.raises(InputError, match="no index is open"):
        _ = Retriever.from_checkpoint(checkpoint).gallery


def test_no_weights_are_said(tmp_path):
    with pytest.raises(InputError, match=r"no weights at .*nothing\.pt"):
        Retriever.from_checkpoint(tmp_path / "nothing.pt")


@pytest.mark.parametrize("engine", ["exact", "faiss", "ivf"])
def test_every_engine_finds_the_same(retriever, checkpoint, data, tmp_path, engine):
    if engine != "exact":
        pytest.importorskip("faiss", reason="faiss, an optional package, is not installed")
    other = Retriever.from_checkpoint(checkpoint, num_workers=0, engine="auto", ivf="always")
    if engine == "ivf":
        other.index(data / "dev", tmp_path / "index")
    path = tmp_path / "index" if engine == "ivf" else retriever.gallery.path
    opened = Retriever.from_index(path, engine=engine)
    names = [result.name for result in retriever.search(REFERENCE, "add a red circle", 23)]
    assert [result.name for result in opened.search(REFERENCE, "add a red circle", 23)] == names


def test_lists_are_made_once_for_a_gallery(checkpoint, data, tmp_path, caplog):
    pytest.importorskip("faiss", reason="faiss, an optional package, is not installed")
    other = Retriever.from_checkpoint(checkpoint, num_workers=0, ivf="always")
    caplog.set_level("INFO")
    other.index(data / "dev", tmp_path / "index")
    assert "recall@50" in caplog.text
    made = tmp_path / "index" / "data-0" / "ivf" / "ivf.json"
    before = made.stat().st_mtime_ns
    other.index(data / "dev", tmp_path / "index")
    assert made.stat().st_mtime_ns == before
