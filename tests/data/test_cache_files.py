"""The files of a feature cache: damage of any byte is found, and its space is taken before anything is written."""

import errno
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_feature_cache import CPU, PREPROCESS, config, open_train
from training_flags import ENVIRONMENT, SCRIPT
from warm import warm_context

from data_utils import CIRRDataset
from lavis.models import load_model
from sprc.core.errors import InputError
from sprc.core.process_group import World
from sprc.data import cache_files
from sprc.data.cache_files import ARRAYS, row_checks, unfinished_rows
from sprc.data.feature_cache_build import use_feature_cache

SIDE_FILES = (*(f"{name}.npy" for name in ARRAYS), "key.json")
KEY = {"count": 20, "tokens": 3, "width": 4, "precision": "fp32"}
ROWS = np.arange(20)


@pytest.fixture(scope="module")
def model(small_yaml):
    torch.manual_seed(0)
    return load_model("blip2_cir_align_prompt", small_yaml, is_eval=True)


@pytest.fixture(scope="module")
def built(demo, model, tmp_path_factory) -> Path:
    """A folder with one whole cache. Read only."""
    folder = tmp_path_factory.mktemp("cache")
    use_feature_cache(config(folder), model, CPU, open_train(demo))
    return folder


@pytest.fixture
def copy(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "copy")


def opened(demo, model, folder: Path) -> CIRRDataset:
    dataset = open_train(demo)
    use_feature_cache(config(folder), model, CPU, dataset)
    return dataset


def cache_in(folder: Path) -> Path:
    (cache,) = folder.iterdir()
    return cache


def change(path: Path, edit: Callable[[np.ndarray], None]) -> None:
    array = np.load(path)
    edit(array)
    np.save(path, array)


def swap(array: np.ndarray) -> None:
    array[[3, 7]] = array[[7, 3]]


def make_done(done: np.ndarray) -> None:
    done[5] = True


def test_any_numpy_reads_the_arrays(built):
    arrays = {name: np.load(cache_in(built) / f"{name}.npy", allow_pickle=False) for name in ARRAYS}
    assert {name: (array.shape[1:], array.dtype.str) for name, array in arrays.items()} == ARRAYS
    assert arrays["done"].all()


@pytest.mark.parametrize(
    ("name", "edit", "image"),
    [
        ("sizes", swap, 3),
        ("sizes", lambda sizes: sizes.__setitem__((4, 0), 99), 4),
        ("crc", swap, 3),
        ("check", swap, 3),
        ("check", lambda check: check.fill(0), 0),
    ],
)
def test_an_edited_array_is_refused(demo, model, copy, name, edit, image):
    change(cache_in(copy) / f"{name}.npy", edit)
    with pytest.raises(InputError, match=rf"{cache_in(copy)} is damaged at image {image}: remove that folder"):
        opened(demo, model, copy)


def test_rows_that_are_moved_with_all_that_describes_them_are_refused(demo, model, copy):
    for name in ("sizes", "crc", "check"):
        change(cache_in(copy) / f"{name}.npy", swap)
    with pytest.raises(InputError, match="damaged at image 3"):
        opened(demo, model, copy)


def test_a_flag_of_a_row_that_is_not_there_is_refused(tmp_path):
    assert unfinished_rows(tmp_path, KEY) == ROWS.tolist()
    change(tmp_path / "done.npy", make_done)
    with pytest.raises(InputError, match="damaged at image 5"):
        unfinished_rows(tmp_path, KEY)


@pytest.mark.parametrize("name", SIDE_FILES)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:30]),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: np.save(path.open("wb"), np.zeros((24, 3))),
        lambda path: np.save(path.open("wb"), np.array([{}] * 24), allow_pickle=True),
        lambda path: path.write_text('{"version": 2}'),
        lambda path: path.write_bytes(b"PK\x03\x04"),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to(path.name)),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
)
def test_a_file_that_is_no_array_or_key_is_one_line(demo, model, copy, name, spoil):
    spoil(cache_in(copy) / name)
    refused_or_harmless(demo, model, copy, [])


@pytest.mark.parametrize("name", [*SIDE_FILES, "features.bin"])
def test_a_file_that_is_missing(demo, model, copy, name):
    (cache_in(copy) / name).unlink()
    if name == "key.json":  # written last: the cache is made again
        opened(demo, model, copy)
        return
    with pytest.raises(InputError, match=rf"{name}.*remove {cache_in(copy)}"):
        opened(demo, model, copy)


def refused_or_harmless(demo, model, copy: Path, expected: list[torch.Tensor]) -> bool:
    """Whether the cache is refused in one line; else its numbers are those expected, if any are."""
    try:
        dataset = opened(demo, model, copy)
        found = [dataset.load_image(name).tokens for name in dataset.names]
    except InputError as error:
        assert str(cache_in(copy)) in str(error) and "remove" in str(error) and "\n" not in str(error)
        return True
    assert all(map(torch.equal, found, expected))
    sizes = [dataset.get_image_size(name) for name in dataset.names]
    assert sizes == [open_train(demo).get_image_size(name) for name in dataset.names]
    return False


def test_a_byte_changed_anywhere_is_refused_or_harmless(demo, model, built, tmp_path):
    """200 seeds; among them a bit of every file's header and of its numbers."""
    whole = opened(demo, model, built)
    expected, refused = [whole.load_image(name).tokens for name in whole.names], 0
    for seed in range(200):
        rng, folder = random.Random(seed), shutil.copytree(built, tmp_path / str(seed))
        path = cache_in(folder) / SIDE_FILES[seed % len(SIDE_FILES)]
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        refused += refused_or_harmless(demo, model, folder, expected)
        shutil.rmtree(folder)
    print(f"{refused} of 200 refused")
    assert refused > 170  # a flag that is cleared is harmless


def test_checks_of_many_rows_take_no_time():
    sizes, crc = np.ones((20_000, 2)), np.arange(20_000)
    start = time.process_time()
    checks = row_checks(KEY, crc, sizes, crc)
    seconds = time.process_time() - start
    print(f"{1000 * seconds:.1f} ms")
    assert seconds < 0.2  # 10 ms, on a machine with nothing else to do
    assert len(set(checks.tolist())) > 19_990
    assert (checks != row_checks(KEY | {"width": 5}, crc, sizes, crc)).all()  # another cache's


# --- space ------------------------------------------------------------------------------------------------------------

BIG = KEY | {"count": 1000, "tokens": 100, "width": 10}  # 4 MB


def test_space_that_is_not_there_is_said_and_what_was_made_is_removed(small_disk, monkeypatch):
    """The check before, which counts what is free, is passed: as with a quota, or another process that writes."""
    disk = small_disk("3m")
    monkeypatch.setattr(cache_files.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10**12}))
    with pytest.raises(InputError, match=rf"needs 0\.004 GB, which {disk}/c has not \(No space left on device\): free"):
        unfinished_rows(disk / "c", BIG)
    assert not list((disk / "c").iterdir())


def test_all_space_is_taken_before_the_first_row(small_disk):
    disk = small_disk("8m")
    unfinished_rows(disk / "c", BIG)
    assert (disk / "c" / "features.bin").stat().st_blocks * 512 >= 4_000_000


FILL = """
import sys
from pathlib import Path
from sprc.data import cache_files
folder, key = Path(sys.argv[1]), dict(count=1000, tokens=100, width=10, precision="fp32")
cache_files.unfinished_rows(folder, key)
filler = open(folder.parent / "filler", "wb", buffering=0)
try:
    while True:
        filler.write(bytes(4096))
except OSError:
    pass
features = cache_files.open_features(folder, key, "r+")
features[:] = 1
features.flush()
print("written", int(features.sum()))
"""


@pytest.mark.integration
def test_a_disk_that_fills_later_ends_nothing(small_disk):
    """Rows written to a hole of a file on a full disk end the process with SIGBUS: in a process of its own."""
    environment = ENVIRONMENT | {"PYTHONPATH": str(SCRIPT.parent)}
    command = [sys.executable, "-c", FILL, str(small_disk("8m") / "c")]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, (answer.returncode, answer.stderr)
    assert answer.stdout.endswith("written 1000000\n")


def test_a_sparse_file_that_is_gone_on_with_is_filled(small_disk):
    disk = small_disk("8m")
    unfinished_rows(disk / "c", BIG)
    path = disk / "c" / "features.bin"
    path.write_bytes(b"begun")
    os.truncate(path, 4_000_000)
    assert path.stat().st_blocks * 512 < 10_000
    assert len(unfinished_rows(disk / "c", BIG)) == 1000
    assert path.stat().st_blocks * 512 >= 4_000_000
    assert path.read_bytes()[:6] == b"begun\0"
    os.truncate(path, 0)
    os.truncate(path, 4_000_000)
    (disk / "filler").write_bytes(bytes(5 * 2**20))
    with pytest.raises(InputError, match="No space left"):
        unfinished_rows(disk / "c", BIG)
    assert path.is_file()  # what an earlier run has done stays


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_allocates_nothing_gets_zeros(small_disk, monkeypatch, number):
    def refuse(*_unused) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(cache_files.os, "posix_fallocate", refuse)
    monkeypatch.setattr(cache_files, "BLOCK", 4096)
    disk = small_disk("8m")
    unfinished_rows(disk / "c", BIG)
    path = disk / "c" / "features.bin"
    assert path.stat().st_blocks * 512 >= 4_000_000
    path.write_bytes(b"begun" * 3000)
    os.truncate(path, 4_000_000)
    unfinished_rows(disk / "c", BIG)
    assert path.stat().st_blocks * 512 >= 4_000_000
    assert path.read_bytes() == (b"begun" * 3000).ljust(4_000_000, b"\0")
    small = small_disk("3m")
    monkeypatch.setattr(cache_files.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10**12}))
    with pytest.raises(InputError, match="No space left"):
        unfinished_rows(small / "c", BIG)
    assert not list((small / "c").iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(small_disk):
    disk = small_disk("8m")
    (disk / "c").mkdir()
    os.system(f"mount -o remount,ro {disk}")
    with pytest.raises(InputError, match=r"features\.bin cannot be written \(Read-only file system\)"):
        unfinished_rows(disk / "c", BIG)


# --- several ranks ----------------------------------------------------------------------------------------------------


def run_rank(rank: int, folder: Path, data: Path, yaml: str) -> None:
    """One of two ranks meets a fault of rank 1, none, and a damaged cache; what it was told goes into a file."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = load_model("blip2_cir_align_prompt", yaml, is_eval=True)
    dataset = CIRRDataset("train", "relative", PREPROCESS, None, data)
    original, told = model.encode_frozen, []
    for factor in (1e6 if rank else 1, 1, 1):
        model.encode_frozen = lambda images, factor=factor: original(images) * factor
        try:
            use_feature_cache(config(folder / "cache"), model, CPU, dataset, world=World(rank, 2))
            told.append("nothing")
        except InputError as error:
            told.append(str(error))
        dataset.features = None
        dist.barrier()
        if rank == 0 and len(told) == 2:
            change(cache_in(folder / "cache") / "sizes.npy", swap)
        dist.barrier()
    (folder / f"told-{rank}").write_text("\n".join(told))
    dist.destroy_process_group()


@pytest.mark.integration
def test_bad_input_of_one_rank_is_told_on_all(demo, small_yaml, tmp_path):
    """Soon, not after the half hour that a rank waits for another."""
    warm_context()
    mp.start_processes(run_rank, (tmp_path, demo, small_yaml), nprocs=2, start_method="forkserver")
    first, second = ((tmp_path / f"told-{rank}").read_text().splitlines() for rank in range(2))
    assert first == second
    assert "beyond fp16: use fp32" in first[0]  # of rank 1's rows
    assert first[1] == "nothing"
    assert "is damaged at image 3" in first[2]  # rank 0 alone looks for unfinished rows


def test_a_cleared_flag_has_its_row_built_again(demo, model, built, copy):
    change(cache_in(copy) / "done.npy", lambda done: done.__setitem__(5, False))
    expected = opened(demo, model, built)
    assert not refused_or_harmless(demo, model, copy, [expected.load_image(name).tokens for name in expected.names])


def test_every_row_is_checked_by_its_own_number():
    arrays = {"sizes": np.full((20, 2), 7), "crc": np.zeros(20, np.uint32)}
    assert len(set(row_checks(KEY, ROWS, arrays["sizes"], arrays["crc"]).tolist())) == 20
