"""A process that builds an index is killed at random moments: what it has saved stays, and the next one continues."""

import json
import os
import random
import signal
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from indexes import TOKENS, WIDTH, colour_maker, paint
from patience import wait_until
from warm import WarmProcess

from sprc.index.gallery import Gallery
from sprc.index.gallery_build import update_index

PHOTOS, KILLS = 300, 10
ROW_BYTES = 2 * TOKENS * WIDTH
# It saves every 20 ms, and is slow enough to be killed on the way.
BUILD = """
import sys, time
from pathlib import Path
from indexes import colour_maker, mean_colour_tokens
from sprc.index import gallery_build

def slowly(images):
    time.sleep(0.02)
    return mean_colour_tokens(images)

gallery_build.SECONDS_PER_SAVE = 0.02
maker = colour_maker()
maker = type(maker)(**vars(maker) | {"encode": slowly})
print("begins", flush=True)
gallery_build.update_index(Path(sys.argv[1]), Path(sys.argv[2]), maker)
"""


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        paint(tmp_path / "photos" / f"{number:03}.png", tuple(rng.integers(0, 256, 3).tolist()), (8, 8))
    return tmp_path / "photos"


@pytest.fixture
def start_build(warm, photos) -> Callable[[Path], WarmProcess]:
    def start(index: Path) -> WarmProcess:
        build = warm("-c", BUILD, photos, index, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
        build.wait_for_line("begins")
        return build

    return start


def saved_rows(index: Path) -> list[list]:
    """The rows whose lines are whole, each with the tokens that it names."""
    lines, data = index / "data-0" / "rows.jsonl", index / "data-0"
    content = lines.read_bytes() if lines.exists() else b""
    rows = [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]
    tokens = (data / "tokens.bin").read_bytes() if rows else b""
    for number, row in enumerate(rows):
        assert zlib.crc32(tokens[number * ROW_BYTES : (number + 1) * ROW_BYTES]) == row[-1]
    return rows


def wait_for_rows(build: WarmProcess, index: Path, more_than: int) -> None:
    wait_until(lambda: build.poll() is not None or len(saved_rows_text(index)) > more_than, "no row is saved")


def saved_rows_text(index: Path) -> list[bytes]:
    lines = index / "data-0" / "rows.jsonl"
    return lines.read_bytes().splitlines() if lines.exists() else []


@pytest.mark.integration
def test_no_saved_row_is_lost_by_ten_kills_and_the_index_is_that_of_one_go(start_build, photos, tmp_path):
    index, chance, before = tmp_path / "index", random.Random(0), []
    killed = 0
    for _ in range(KILLS):
        build = start_build(index)
        if chance.random() < 0.7:  # the others are killed while they begin
            wait_for_rows(build, index, len(before))
        time.sleep(chance.uniform(0, 0.1))
        build.send_signal(signal.SIGKILL)
        killed += build.finished().returncode == -signal.SIGKILL
        rows = saved_rows(index)
        assert rows[: len(before)] == before
        before = rows
    assert killed == KILLS and 0 < len(before) < PHOTOS
    assert start_build(index).finished().returncode == 0
    assert saved_rows(index)[: len(before)] == before
    update_index(photos, tmp_path / "one go", colour_maker())
    assert_same(Gallery(index), Gallery(tmp_path / "one go"))


def assert_same(gallery: Gallery, other: Gallery) -> None:
    assert (gallery.names, gallery.images, gallery.digest) == (other.names, other.images, other.digest)
    np.testing.assert_array_equal(gallery.tokens(0, PHOTOS), other.tokens(0, PHOTOS))
