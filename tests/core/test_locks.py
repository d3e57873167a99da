"""Locks: one process at a time, none kept by what outlives its owner, nothing left over."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest
from paths import SOURCE
from patience import PATIENCE

from sprc.core import locks
from sprc.core.errors import InputError
from sprc.core.locks import held, held_file

ENVIRONMENT = os.environ | {"PYTHONPATH": str(SOURCE)}


def python(code: str, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


HOLD_AND_FORK = """
import os, sys, time
from pathlib import Path
from sprc.core import locks
with getattr(locks, sys.argv[1])(Path(sys.argv[2])):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(3600)
"""


@pytest.mark.integration
@pytest.mark.parametrize("lock", ["held", "held_file"])
def test_a_child_does_not_keep_the_lock_of_a_parent_that_was_killed(tmp_path, lock):
    parent = python(HOLD_AND_FORK, lock, tmp_path)
    child = int(parent.stdout.readline())
    try:
        hold = getattr(locks, lock)
        with pytest.raises(InputError, match="in use by another process"), hold(tmp_path):
            pass
        parent.kill()
        parent.wait()
        os.kill(child, 0)  # it lives
        with hold(tmp_path):
            pass
    finally:
        parent.kill()
        os.kill(child, signal.SIGKILL)
        parent.stdout.close()


def test_a_child_that_ends_removes_nothing(tmp_path):
    with held_file(tmp_path / "a"):
        if os.fork() == 0:
            with held_file(tmp_path / "b"):
                pass
            os._exit(0)
        os.wait()
        assert [entry.name for entry in tmp_path.iterdir()] == ["a.lock"]
        with pytest.raises(InputError), held_file(tmp_path / "a"):
            pass
    assert not list(tmp_path.iterdir())


COUNT = """
import sys
from pathlib import Path
from sprc.core.locks import held_file
path = Path(sys.argv[1])
for _ in range(100):
    with held_file(path, wait=True):
        path.write_text(str(int(path.read_text()) + 1))
"""


def test_a_file_is_written_by_one_at_a_time(tmp_path):
    """The lock's own file comes and goes all the time."""
    path = tmp_path / "count"
    path.write_text("0")
    processes = [python(COUNT, path) for _ in range(3)]
    for process in processes:
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    assert path.read_text() == "300"
    assert [entry.name for entry in tmp_path.iterdir()] == ["count"]


def test_a_lock_that_a_killed_process_left_is_taken(tmp_path):
    (tmp_path / "a.lock").touch()
    with held_file(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "a.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="cannot be held"), held_file(tmp_path / "a"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF])
@pytest.mark.parametrize("lock", [held, held_file])
@pytest.mark.parametrize("wait", [False, True])
def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog, number, lock, wait):
    def refuse(*_unused) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with lock(tmp_path, wait), lock(tmp_path, wait):
        said = caplog.messages
    assert len(said) == 2
    assert all("knows no locks" in line and "nothing keeps a second run out of it" in line for line in said)


def test_a_lock_that_fails_otherwise_is_one_line(tmp_path, monkeypatch):
    def refuse(*_unused) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InputError, match="cannot be locked"), held(tmp_path):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_cannot_be_opened_is_one_line(tmp_path, small_disk):
    with pytest.raises(InputError, match=r"none cannot be held .*\(No such file"), held(tmp_path / "none"):
        pass
    disk = small_disk("1m")
    os.system(f"mount -o remount,ro {disk}")
    with pytest.raises(InputError, match=r"Read-only file system"), held_file(disk / "a"):
        pass
    with held(disk):  # a folder can be
        pass


HOLD = """
import sys
from pathlib import Path
from sprc.core.locks import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_waits(tmp_path):
    other = python(HOLD, tmp_path)
    assert other.stdout.readline() == "held\n"
    taken = threading.Event()

    def take() -> None:
        with held(tmp_path, wait=True):
            taken.set()

    waiting = threading.Thread(target=take)
    waiting.start()
    assert not taken.wait(0.3)
    other.communicate()  # closes its input, for which it holds the lock
    waiting.join(PATIENCE)
    assert taken.is_set()
