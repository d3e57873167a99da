"""The command that indexes and searches, from flags to files."""

import json
import os
import shutil

import pytest
import torch
from PIL import Image

from lavis.datasets.region_boxes import Region, save_boxes
from lavis.models import load_model
from lavis.models.checkpoint import save_model
from retrieve import main
from sprc.core.errors import InputError

COLOURS = {"red.png": (250, 10, 10), "green.jpg": (10, 250, 10), "sub/blue.png": (10, 10, 250)}


@pytest.fixture(scope="module")
def place(tmp_path_factory, small_yaml):
    """A folder with photographs, a checkpoint, and the index of both."""
    folder = tmp_path_factory.mktemp("retrieve")
    for name, colour in COLOURS.items():
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (90, 60), colour).save(folder / "photos" / name)
    torch.manual_seed(1)
    save_model(load_model("blip2_cir_align_prompt", small_yaml, weights="random"), 0, folder / "model.pt")
    main([*words("index", folder / "photos"), *words("--model-path", folder / "model.pt", "--output", folder / "i"),
          *words("--backbone", small_yaml, "--num-workers", 0)])  # fmt: skip
    return folder


def words(*values) -> list[str]:
    return [str(value) for value in values]


def search(place, *more, image="red.png", text="make it green", k=2):
    return main(words("search", place / "i", "--image", image, "--text", text, "--top-k", k, *more))


def test_the_table_lists_the_results(place, capsys):
    results = search(place)
    out = capsys.readouterr().out.splitlines()
    assert out[-4:-2] == ['red.png + "make it green"', "rank   score  image"]
    for line, result in zip(out[-2:], results, strict=True):
        assert line.split() == [str(result.rank), f"{result.score:.4f}", result.name]


def test_a_line_of_the_table_is_one_line_of_the_terminal(place, tmp_path, capsys):
    reference = shutil.copy(place / "photos" / "red.png", tmp_path / "a\nb\x1b[2J.png")
    search(place, image=str(reference), text="make it\ngreen")
    out = capsys.readouterr().out
    assert r'a\nb\x1b[2J.png + "make it\ngreen"' in out.splitlines()[-4] and "\x1b" not in out


def test_json_is_in_ascii_which_any_terminal_has(place, tmp_path, capsys):
    reference = shutil.copy(place / "photos" / "red.png", tmp_path / "é🙂.png")
    search(place, "--json", image=str(reference))
    out = capsys.readouterr().out
    assert out.isascii() and json.loads(out)["image"] == str(reference)


def test_a_page_shows_a_reference_whose_name_is_no_text(place, tmp_path):
    reference = os.fsdecode(os.fsencode(tmp_path) + b"/\xff<b>.png")
    shutil.copy(place / "photos" / "red.png", reference)
    search(place, *words("--html", tmp_path / "found.html", "--png", tmp_path / "found.png"), image=reference)
    assert r"\udcff&lt;b&gt;.png" in (tmp_path / "found.html").read_text()


def test_json_is_all_that_stdout_has(place, capsys):
    results = search(place, "--json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["results"] == [json.loads(json.dumps(result.as_dict())) for result in results]
    assert (answer["image"], answer["text"]) == ("red.png", "make it green")


def test_the_picture_and_the_page_are_written(place, tmp_path, capsys):
    save_boxes(tmp_path / "boxes.json", {"blue": [Region((0.1, 0.1, 0.9, 0.9))]})
    files = words("--png", tmp_path / "found.png", "--html", tmp_path / "found.html")
    search(place, *files, "--box-file", tmp_path / "boxes.json")
    assert Image.open(tmp_path / "found.png").size[0] > 400
    page = (tmp_path / "found.html").read_text()
    assert "sub/blue.png" in page
    assert "<rect" in page
    assert capsys.readouterr().out.count("written: ") == 2


def test_photographs_that_moved_are_found_by_a_flag(place, tmp_path):
    moved = tmp_path / "moved"
    (place / "photos").rename(moved)
    try:
        with pytest.raises(InputError, match="leads to no folder of photographs: give it as `photos`"):
            search(place)
        results = search(place, "--photos", moved)
        assert all(result.path.is_file() for result in results)
    finally:
        moved.rename(place / "photos")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--png", "found.jpg"], "`png` found.jpg: give a name that ends in .png"),
        (["--html", "found.png"], "`html` found.png: give a name that ends in .html"),
        (["--box-file", "nothing.json"], "no file nothing.json"),
    ],
)
def test_a_wrong_file_is_named_before_the_search(place, more, says):
    with pytest.raises(InputError, match=says):
        search(place, *more)


def test_what_is_no_index_is_said(tmp_path):
    with pytest.raises(InputError, match="is no index: give a folder that the command index has made"):
        main(words("search", tmp_path, "--image", "a.png", "--text", "b"))


@pytest.mark.parametrize("content", [[], ["notes.txt"]])
def test_a_folder_without_photographs_is_refused(place, tmp_path, content):
    (tmp_path / "photos").mkdir()
    for name in content:
        (tmp_path / "photos" / name).touch()
    given = words("index", tmp_path / "photos", "--model-path", place / "model.pt", "--output", tmp_path / "i")
    with pytest.raises(InputError, match="holds no photograph"):
        main([*given, "--backbone", str(place / "i" / "backbone.yaml")])
    assert not (tmp_path / "i").exists()
