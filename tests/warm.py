"""Scripts in processes of their own that need not load torch again: a server that has it forks them.

To load torch, timm and transformers takes a process some seconds, which most tests of a script are not about. Modules
of the project are loaded by each process. Start such processes by the fixture `warm`, which ends what a test leaves.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path

from paths import SOURCE
from patience import PATIENCE, wait_until
from training_flags import hear_interrupts

PACKAGES = ["torch", "torchvision.transforms.v2", "timm.models.eva", "transformers.models.bert.tokenization_bert",
            "transformers.models.blip_2.modeling_blip_2", "scipy.optimize"]  # fmt: skip


def warm_context():
    """The context of processes that begin with `PACKAGES`, which use one thread. Its server is running."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PACKAGES)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it while it is loaded
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.update(OMP_NUM_THREADS=before)
    return context


class WarmProcess:
    """A command line of Python, `SCRIPT FLAGS`, `-c CODE FLAGS` or `-m MODULE FLAGS`, that leads a group of its own."""

    def __init__(self, words: list[str], folder: Path, cwd: Path, environ: dict[str, str]):
        self.words, self.out, self.err = words, folder / "out.txt", folder / "err.txt"
        given = (words, str(self.out), str(self.err), str(cwd), os.environ | environ)
        self.process = warm_context().Process(target=_run, args=given)
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        """The status, as `subprocess.Popen` has it; None while it runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def finished(self, timeout: float = PATIENCE) -> subprocess.CompletedProcess:
        """Wait for its end -> its status and all that it and its children have printed."""
        self.process.join(timeout)
        assert self.poll() is not None, f"still running: {self.words}"
        out, err = (path.read_text() if path.exists() else "" for path in (self.out, self.err))
        return subprocess.CompletedProcess(self.words, self.poll(), out, err)

    def wait_for_line(self, line: str) -> None:
        """Until it has printed a line that begins so, or has ended."""

        def is_there() -> bool:
            return self.out.exists() and any(each.startswith(line) for each in self.out.read_text().splitlines())

        wait_until(lambda: self.poll() is not None or is_there(), f"no line {line!r}")

    def end(self) -> None:
        if self.poll() is None:
            self.process.kill()
        self.process.join()


def _run(words: list[str], out: str, err: str, cwd: str, environ: dict[str, str]) -> None:
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.setpgid(0, 0)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    multiprocessing.set_start_method(None, force=True)  # else that of this process would be its children's
    hear_interrupts()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    installed = [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))]
    sys.path[:] = [*filter(None, given), str(SOURCE), *installed]
    _set_encoding(os.environ.get("PYTHONIOENCODING"))
    _run_main(words)


def _set_encoding(name: str | None) -> None:
    """That of what is printed, as a Python that starts with $PYTHONIOENCODING has it."""
    if name is not None:
        sys.stdout.reconfigure(encoding=name)
        sys.stderr.reconfigure(encoding=name, errors="backslashreplace")


def _run_main(words: list[str]) -> None:
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")
