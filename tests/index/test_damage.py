"""Whatever has happened to the files of an index: a search finds what is right, or says in a line what is damaged."""

import numpy as np
import pytest
from indexes import TOKENS, WIDTH, colour_maker, found_by, paint, unit_rows, write_index

from sprc.core.errors import InputError
from sprc.index.exact import ExactEngine
from sprc.index.gallery import Gallery
from sprc.index.gallery_build import update_index
from sprc.index.gallery_files import IndexFolder

IMAGES = 6


@pytest.fixture
def index(tmp_path):
    return write_index(tmp_path / "index", unit_rows(np.random.default_rng(0), IMAGES, TOKENS, WIDTH))


def search_all(index, query, k=IMAGES):
    gallery = Gallery(index)
    return found_by(gallery, ExactEngine(gallery), query[None], k)[0]


@pytest.mark.parametrize("name", ["gallery.npy", "rows.jsonl"])
def test_no_flipped_bit_of_a_list_passes(index, name):
    path = index / "data-0" / name
    content = path.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(InputError, match=f"{name}.*(is damaged|is not valid JSON).*index again"):
            Gallery(index)


@pytest.mark.parametrize("name", ["gallery.npy", "rows.jsonl", "tokens.bin"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_named(index, name, kept):
    path = index / "data-0" / name
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=name):
        Gallery(index)


@pytest.mark.parametrize("seed", range(20))
def test_a_result_whose_tokens_are_damaged_is_none(index, seed):
    rng = np.random.default_rng(seed)
    path, query = index / "data-0" / "tokens.bin", unit_rows(rng, WIDTH)
    content = bytearray(path.read_bytes())
    place, count = int(rng.integers(0, len(content))), int(rng.choice([1, 40]))
    content[place : place + count] = rng.bytes(len(content[place : place + count]))
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"tokens\.bin is damaged: run the command index again"):
        search_all(index, query)


@pytest.mark.parametrize("images", [1, IMAGES])
def test_tokens_that_are_no_numbers_are_named(index, images):
    path = index / "data-0" / "tokens.bin"
    content = np.fromfile(path, np.float16)
    content[: images * TOKENS * WIDTH] = np.nan
    content.tofile(path)
    for k in (1, 3):
        with pytest.raises(InputError, match=r"tokens\.bin is damaged"):
            search_all(index, np.ones(WIDTH, np.float32) / np.sqrt(WIDTH), k)


@pytest.fixture
def photos(tmp_path):
    for number in range(4):
        paint(tmp_path / "photos" / f"{number}.png", (60 * number, 9, 9))
    return tmp_path / "photos"


@pytest.mark.parametrize("name", ["gallery.npy", "tokens.bin"])
@pytest.mark.parametrize("kept", [0, 0.5, 1.5])
def test_the_next_build_makes_an_index_whole_again(photos, tmp_path, name, kept):
    index = tmp_path / "index"
    update_index(photos, index, colour_maker())
    path = index / "data-0" / name
    content = path.read_bytes()
    path.write_bytes((2 * content)[: int(kept * len(content))])
    update_index(photos, index, colour_maker())
    update_index(photos, tmp_path / "new", colour_maker())
    assert Gallery(index).digest == Gallery(tmp_path / "new").digest


def test_a_build_refuses_rows_that_have_changed(photos, tmp_path):
    index = tmp_path / "index"
    update_index(photos, index, colour_maker())
    path = index / "data-0" / "rows.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0.png", b"8.png"))
    with pytest.raises(InputError, match=r"rows\.jsonl is damaged: remove .* and index again"):
        update_index(photos, index, colour_maker())


@pytest.mark.parametrize("method", ["read_head", "read_gallery", "read_rows"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_an_index_can_be_opened_while_a_build_ends(photos, tmp_path, monkeypatch, method, rounds):
    """One round adds rows; three of them make a new data folder, and remove the old one."""
    index, read, calls = tmp_path / "index", getattr(IndexFolder, method), []
    update_index(photos, index, colour_maker())

    def read_and_build(self, *args):
        found = read(self, *args)
        monkeypatch.setattr(IndexFolder, method, read)
        for shade in range(rounds):
            for number in range(4):
                paint(photos / f"{number}.png", (shade, 7, 60 * number), (30 + shade, 20))
            calls.append(update_index(photos, index, colour_maker()))
        return found

    monkeypatch.setattr(IndexFolder, method, read_and_build)
    gallery = Gallery(index)
    assert len(calls) == rounds and len(gallery) == 4
    assert [image.size[0] for image in gallery.images] in ([20] * 4, [30 + rounds - 1] * 4)
