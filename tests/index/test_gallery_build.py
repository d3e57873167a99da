"""An index holds the photographs of its folder, whatever was added, changed, deleted, broken or killed before."""

import json
import os

import numpy as np
import pytest
import torch
from indexes import TOKENS, WIDTH, colour_maker, mean_colour_tokens, paint

from sprc.core.errors import InputError
from sprc.core.locks import held
from sprc.data.images import open_rgb
from sprc.index.gallery import Gallery
from sprc.index.gallery_build import update_index
from sprc.index.gallery_files import IndexFolder
from sprc.index.gallery_rows import RowFiles
from sprc.index.photos import Photo

COLOURS = {"a.png": (255, 0, 0), "b.jpg": (0, 255, 0), "sub/c.png": (0, 0, 255), "sub/d.webp": (9, 99, 199)}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name, colour in COLOURS.items():
        paint(folder / name, colour)
    return folder


def expected_tokens(folder, names) -> np.ndarray:
    preprocess = colour_maker().preprocess
    images = torch.stack([preprocess(open_rgb(folder / name)) for name in names])
    return mean_colour_tokens(images).to(torch.float16).numpy()


def assert_holds(index, folder, names) -> Gallery:
    gallery = Gallery(index)
    assert gallery.names == sorted(names)
    np.testing.assert_array_equal(gallery.tokens(0, len(gallery)), expected_tokens(folder, gallery.names))
    return gallery


@pytest.mark.parametrize("workers", [0, 2])
def test_an_index_holds_the_tokens_of_all_photographs(photos, tmp_path, workers):
    changes = update_index(photos, tmp_path / "index", colour_maker(num_workers=workers))
    assert (changes.encoded, changes.kept, changes.broken) == (4, 0, {})
    gallery = assert_holds(tmp_path / "index", photos, COLOURS)
    assert gallery.photos == photos.resolve()
    assert [image.size for image in gallery.images] == [(20, 16)] * 4


def test_a_second_build_encodes_what_is_new_or_changed_alone(photos, tmp_path):
    index = tmp_path / "index"
    update_index(photos, index, colour_maker())
    assert update_index(photos, index, colour_maker()).encoded == 0
    paint(photos / "new.png", (50, 60, 70))
    paint(photos / "b.jpg", (1, 2, 3), (30, 30))
    (photos / "a.png").unlink()
    changes = update_index(photos, index, colour_maker())
    assert (changes.encoded, changes.kept, changes.dropped) == (2, 2, 2)
    assert_holds(index, photos, {"b.jpg", "sub/c.png", "sub/d.webp", "new.png"})


def test_rows_without_use_are_removed_once_they_are_the_most(photos, tmp_path):
    index = tmp_path / "index"
    for shade in range(4):
        for name in COLOURS:
            paint(photos / name, (shade, shade, shade), (20 + shade, 16))
        update_index(photos, index, colour_maker())
    assert [path.name for path in index.glob("data-*")] == ["data-1"]
    gallery = assert_holds(index, photos, COLOURS)
    assert len(gallery.stored) <= 8


def test_broken_photographs_are_named_and_the_rest_is_indexed(photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    (photos / "empty.png").touch()
    (photos / "nowhere.png").symlink_to(photos / "missing.png")
    changes = update_index(photos, tmp_path / "index", colour_maker())
    assert set(changes.broken) == {"broken.jpg", "empty.png", "nowhere.png"}
    assert "3 more cannot be read" in str(changes)
    skipped = json.loads((tmp_path / "index" / "skipped.json").read_text())
    assert [entry["name"] for entry in skipped] == ["broken.jpg", "empty.png", "nowhere.png"]
    assert_holds(tmp_path / "index", photos, COLOURS)


def test_a_folder_whose_photographs_are_all_broken_is_refused(tmp_path):
    paint(tmp_path / "photos" / "a.png", (1, 2, 3))
    (tmp_path / "photos" / "a.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"none of the 1 photographs .* can be read: a\.png"):
        update_index(tmp_path / "photos", tmp_path / "index", colour_maker())


class Killed(Exception):
    """Stands for a signal that nothing catches."""


@pytest.mark.parametrize("batches", [0, 1])
def test_a_build_that_was_cut_short_continues(photos, tmp_path, batches):
    index, calls = tmp_path / "index", []

    def encode_and_die(images):
        if len(calls) == batches:
            raise Killed
        calls.append(images)
        return mean_colour_tokens(images)

    maker = colour_maker()
    with pytest.raises(Killed):
        update_index(photos, index, type(maker)(**vars(maker) | {"encode": encode_and_die}))
    with pytest.raises(
        InputError, match="not complete: wait for the process that builds it, or run the command index again"
    ):
        Gallery(index)
    assert update_index(photos, index, colour_maker()).kept == 2 * batches
    assert_holds(index, photos, COLOURS)


@pytest.mark.parametrize("tail", [b"", b'["a.png", 1'])
def test_what_a_kill_left_behind_the_last_whole_row_is_cut_off(photos, tmp_path, tail):
    index = tmp_path / "index"
    update_index(photos, index, colour_maker())
    data = index / "data-0"
    with open(data / "tokens.bin", "ab") as tokens, open(data / "rows.jsonl", "ab") as rows:
        tokens.write(b"half a row")
        rows.write(tail)
    paint(photos / "e.png", (77, 88, 99))
    changes = update_index(photos, index, colour_maker())
    assert (changes.encoded, changes.kept) == (1, 4)
    assert_holds(index, photos, {*COLOURS, "e.png"})


def test_damaged_rows_are_encoded_again(photos, tmp_path):
    index = tmp_path / "index"
    update_index(photos, index, colour_maker())
    tokens = index / "data-0" / "tokens.bin"
    content = bytearray(tokens.read_bytes())
    content[0] ^= 1
    tokens.write_bytes(content)
    assert update_index(photos, index, colour_maker()).encoded == 1
    assert_holds(index, photos, COLOURS)


def test_an_index_of_another_model_is_refused_with_both_names(photos, tmp_path):
    update_index(photos, tmp_path / "index", colour_maker())
    with pytest.raises(
        InputError, match=r"is of colours \(weights ffffffffffff.*not of colours \(weights eeeeeeeeeeee"
    ):
        update_index(photos, tmp_path / "index", colour_maker("e" * 64))


def test_an_index_of_another_folder_is_refused(photos, tmp_path):
    update_index(photos, tmp_path / "index", colour_maker())
    paint(tmp_path / "others" / "a.png", (1, 2, 3))
    with pytest.raises(InputError, match=r"is of the folder .*photos, not of .*others"):
        update_index(tmp_path / "others", tmp_path / "index", colour_maker())


def test_photographs_that_moved_are_known_again(photos, tmp_path):
    update_index(photos, tmp_path / "index", colour_maker())
    moved = photos.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="leads to no folder of photographs"):
        _ = Gallery(tmp_path / "index").photos
    assert update_index(moved, tmp_path / "index", colour_maker()).kept == 4
    assert Gallery(tmp_path / "index").photos == moved.resolve()


def test_one_process_builds_an_index_at_a_time(photos, tmp_path):
    index = tmp_path / "index"
    index.mkdir()
    with held(index), pytest.raises(InputError, match="in use by another process"):
        update_index(photos, index, colour_maker())


def test_a_folder_with_other_data_is_left_as_it_is(photos, tmp_path):
    with pytest.raises(InputError, match="holds data that is no index"):
        update_index(photos, photos, colour_maker())
    assert sorted(path.name for path in photos.iterdir()) == ["a.png", "b.jpg", "sub"]


@pytest.mark.parametrize("place", ["index.json", "data-0/rows.jsonl"])
def test_a_damaged_file_is_named(photos, tmp_path, place):
    update_index(photos, tmp_path / "index", colour_maker())
    (tmp_path / "index" / place).write_bytes(b'{"format": 1}\n')
    with pytest.raises(InputError, match=place.replace(".", r"\.") + ".*remove .* and index again"):
        Gallery(tmp_path / "index")


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "a/../../b.png", "", None, "a\0b"])
def test_a_name_that_leads_out_of_the_folder_is_damage(photos, tmp_path, name):
    update_index(photos, tmp_path / "index", colour_maker())
    rows = tmp_path / "index" / "data-0" / "rows.jsonl"
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join([json.dumps([name, 1, 1, 4, 3, 1]), *lines[1:]]) + "\n")
    IndexFolder(tmp_path / "index").write_gallery(0, np.arange(4))  # so nothing else is wrong with it
    with pytest.raises(InputError, match="is no row"):
        Gallery(tmp_path / "index")


def test_a_full_disk_is_one_line_also_when_the_files_are_closed(tmp_path):
    folder = IndexFolder(tmp_path / "index")
    with (
        pytest.raises(InputError, match=r"cannot be written .*free some space"),
        RowFiles(folder, 0, colour_maker().maker) as files,
    ):
        files.tokens.close()
        files.tokens = os.fdopen(os.open("/dev/full", os.O_RDWR), "r+b")
        files.add("a.png", Photo(1, 1), (4, 3), np.zeros((TOKENS, WIDTH), np.float16))
    assert files.tokens.closed and files.lines.closed


def test_links_to_folders_are_not_followed_and_that_is_said(photos, tmp_path, caplog):
    paint(tmp_path / "others" / "e.png", (1, 2, 3))
    (photos / "linked").symlink_to(tmp_path / "others")
    (photos / "loop").symlink_to(photos)
    update_index(photos, tmp_path / "index", colour_maker())
    assert f"1 links to folders are not followed, first {photos / 'linked'}" in caplog.text
    assert_holds(tmp_path / "index", photos, COLOURS)


def test_what_has_gone_is_told_once(photos, tmp_path):
    update_index(photos, tmp_path / "index", colour_maker())
    (photos / "a.png").unlink()
    paint(photos / "b.jpg", (1, 2, 3), (30, 30))
    assert [update_index(photos, tmp_path / "index", colour_maker()).dropped for _ in range(3)] == [2, 0, 0]


def test_a_name_breaks_no_line(photos, tmp_path):
    for name in ("new\nline.png", "\x1b[31mred.png", "图片.png"):
        (photos / name).touch()
    text = str(update_index(photos, tmp_path / "index", colour_maker()))
    assert len(text.splitlines()) == 2 and "\x1b" not in text
    assert r"new\nline.png (it is empty" in text and r"\x1b[31mred.png" in text and "图片.png" in text
