"""Writing: on file systems that are full, read-only or odd the old file stays whole, and the reason is told."""

import errno
import io
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lavis.models import load_model
from lavis.models.checkpoint import save_model
from sprc.core import files
from sprc.core.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_full_disk_leaves_the_old_file(small_disk):
    disk = small_disk("1m")
    files.write_atomically(disk / "a.txt", "old")
    with pytest.raises(InputError, match=r"a\.txt cannot be written \(No space left on device\): free some space"):
        files.write_atomically(disk / "a.txt", "new" * 500_000)
    assert (disk / "a.txt").read_text() == "old"
    assert names(disk) == ["a.txt"]


@pytest.mark.parametrize("numbers", [200_000, 2_000_000])
def test_space_that_ends_within_torch_save(small_disk, numbers):
    """Of several tensors: torch.save then raises a RuntimeError of its own, which says nothing of the disk."""
    disk = small_disk("2m")
    with files.atomic_writer(disk / "a.pt") as file:
        torch.save([1], file)
    too_much, match = [torch.zeros(numbers) for _ in range(10)], r"a\.pt cannot be written \(No space left"
    with pytest.raises(InputError, match=match) as caught, files.atomic_writer(disk / "a.pt") as file:
        torch.save(too_much, file)
    assert isinstance(caught.value.__cause__, OSError)
    assert torch.load(disk / "a.pt", weights_only=True) == [1]
    assert names(disk) == ["a.pt"]


def test_space_that_ends_within_a_checkpoint(small_disk):
    disk, model = small_disk("1m"), load_model("blip2_cir_align_prompt", "tiny")
    with pytest.raises(InputError, match=r"m\.pt cannot be written \(No space left"):
        save_model(model, 0, disk / "saved_models" / "m.pt")
    assert names(disk / "saved_models") == []


def test_a_disk_that_can_be_read_alone(small_disk):
    disk = small_disk("1m")
    files.write_atomically(disk / "a.txt", "old")
    os.system(f"mount -o remount,ro {disk}")
    with pytest.raises(InputError, match=r"a\.txt cannot be written \(Read-only file system\): make its folder"):
        files.write_atomically(disk / "a.txt", "new")
    assert (disk / "a.txt").read_text() == "old"


@pytest.mark.parametrize(("number", "fix"), [(errno.EACCES, "make its"), (errno.EIO, "check"), (errno.EDQUOT, "free")])
def test_what_cannot_be_written_is_named(tmp_path, monkeypatch, number, fix):
    refuse(monkeypatch, number)
    with pytest.raises(InputError, match=rf"x\.json cannot be written \({os.strerror(number)}\): {fix}"):
        files.write_atomically(tmp_path / "x.json", "{}")
    assert not names(tmp_path)


def refuse(monkeypatch, number: int, when: Callable[[int], bool] = lambda handle: True) -> None:
    """Let fsync fail of the handles that `when` is true of."""
    original = os.fsync

    def fail(handle: int) -> None:
        if when(handle):
            raise OSError(number, os.strerror(number))
        original(handle)

    monkeypatch.setattr(files.os, "fsync", fail)


def is_folder(handle: int) -> bool:
    return os.path.isdir(f"/proc/self/fd/{handle}")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_knows_no_fsync(tmp_path, monkeypatch, number):
    refuse(monkeypatch, number)
    files.write_atomically(tmp_path / "x", "whole")
    assert (tmp_path / "x").read_text() == "whole"


@pytest.mark.parametrize("number", [errno.EBADF, errno.EACCES])
def test_a_file_system_that_knows_no_fsync_of_folders(tmp_path, monkeypatch, number):
    refuse(monkeypatch, number, is_folder)
    files.write_atomically(tmp_path / "x", "whole")
    assert names(tmp_path) == ["x"]
    refuse(monkeypatch, number)  # of a file it is an error
    with pytest.raises(InputError):
        files.write_atomically(tmp_path / "x", "other")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_folder_that_the_disk_cannot_keep_is_an_error(tmp_path, monkeypatch, number):
    refuse(monkeypatch, number, is_folder)
    with pytest.raises(InputError, match=os.strerror(number)):
        files.write_atomically(tmp_path / "x", "whole")


def test_a_link_in_the_place_of_the_partial_file_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    for number, target in enumerate([tmp_path / "elsewhere", tmp_path / "nowhere", Path("/dev/full")]):
        (tmp_path / f"{number}.partial").symlink_to(target)
        files.write_atomically(tmp_path / str(number), "new")
        assert (tmp_path / str(number)).read_text() == "new"
        assert not (tmp_path / str(number)).is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "mine"
    assert names(tmp_path) == ["0", "1", "2", "elsewhere"]


def test_whatever_has_the_name_of_the_partial_file_is_removed(tmp_path):
    os.mkfifo(tmp_path / "a.partial")
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "c.partial").write_text("half")
    for name in "abc":
        files.write_atomically(tmp_path / name, "new")
    assert names(tmp_path) == ["a", "b", "c"]
    (tmp_path / "d.partial" / "full").mkdir(parents=True)
    with pytest.raises(InputError, match=r"d cannot be written \(Directory not empty\): remove the folder"):
        files.write_atomically(tmp_path / "d", "new")


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), InputError("bad"), RuntimeError("torch")])
def test_any_error_removes_the_partial_file_and_stays_itself(tmp_path, error):
    files.write_atomically(tmp_path / "x", "old")
    with pytest.raises(type(error)) as caught, files.atomic_writer(tmp_path / "x") as file:
        file.write(b"half")
        raise error
    assert caught.value is error
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_a_partial_file_that_cannot_be_removed_hides_nothing(tmp_path, monkeypatch):
    def read_only(path: Path, **options) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    refuse(monkeypatch, errno.EIO)
    with pytest.raises(InputError, match="Input/output error"), files.atomic_writer(tmp_path / "x") as file:
        file.write(b"new")
        monkeypatch.setattr(Path, "unlink", read_only)


@pytest.mark.parametrize(
    ("place", "reason"),
    [("file/x", "File exists|Not a directory"), ("file/a/x", "Not a directory"), ("n" * 250, "File name too long"),
     ("folder", "Is a directory")],
)  # fmt: skip
def test_a_place_where_no_file_can_be(tmp_path, place, reason):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(InputError, match=rf"cannot be written \(({reason})\)"):
        files.write_atomically(tmp_path / place, "new")
    assert names(tmp_path) == ["file", "folder"]


def test_two_that_write_one_file_leave_a_whole_one(tmp_path):
    with pytest.raises(InputError, match="another process writes it"), files.atomic_writer(tmp_path / "x") as first:
        first.write(b"first")
        with files.atomic_writer(tmp_path / "x") as second:
            second.write(b"second")
        (tmp_path / "x.partial").write_bytes(b"the third's half")
    assert (tmp_path / "x").read_bytes() == b"second"
    assert (tmp_path / "x.partial").read_bytes() == b"the third's half"


def test_the_mode_is_that_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    files.write_atomically(tmp_path / "x", "new")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_another_user(work: Callable, *arguments) -> str:
    """What `work` raises, or its result, in words, in a process of a user without rights."""
    if os.getuid() != 0:
        pytest.skip("another user needs root")
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_answer, args=(sender, work, arguments))
    child.start()
    assert receiver.poll(60)
    answer = receiver.recv()
    child.join()
    return answer


def _answer(sender, work: Callable, arguments: tuple) -> None:
    os.setuid(65534)
    try:
        sender.send(str(work(*arguments)))
    except Exception as error:  # whatever it is, the test wants to see it
        sender.send(f"{type(error).__name__}: {error}")


def test_another_users_files(open_folder):
    path = open_folder / "a.json"
    path.write_text("[]")
    path.chmod(0o600)
    said = as_another_user(files.read_json, path, list, "copy it")
    assert said == f"InputError: {path} cannot be read (Permission denied): copy it"
    said = as_another_user(files.write_atomically, path, "[]")
    assert said.startswith(f"InputError: {path} cannot be written (Permission denied): make its folder writable")
    (open_folder / "closed").mkdir(mode=0o700)
    said = as_another_user(files.read_json, open_folder / "closed" / "a.json", list, "copy it")
    assert "cannot be read (Permission denied)" in said
    blind = open_folder / "blind"
    blind.mkdir()
    blind.chmod(0o733)  # to be written, but not read
    assert as_another_user(files.write_atomically, blind / "x", "new") == "None"
    assert (blind / "x").read_text() == "new"


def test_csv_rows_are_added_to_any_bytes(tmp_path):
    path = tmp_path / "a.csv"
    for number in (1, 2):
        files.append_csv(path, ["a", "b"], [{"a": number, "b": "x"}], ending="\n")
    assert path.read_text() == "a,b\n1,x\n2,x\n"
    path.write_bytes(b"a,b\n\xff\xfe,x\n")
    files.append_csv(path, ["a", "b"], [{"a": 3, "b": "y"}], ending="\n")
    assert path.read_bytes() == b"a,b\n\xff\xfe,x\n3,y\n"


def test_the_watched_file_gives_what_the_file_gives(tmp_path):
    with files.atomic_writer(tmp_path / "x") as file:
        file.write(b"abc")
        assert file.tell() == 3 and file.writable()
        with pytest.raises(io.UnsupportedOperation):
            file.read()
