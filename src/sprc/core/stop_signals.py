"""SIGTERM and Ctrl-C as a request to stop after the step in progress, when everything can be saved."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
NOTHING_NEW = "what was saved before stays as it is"


def leave_signals_to_parent(_worker: int) -> None:
    """A `worker_init_fn`: from now on only the parent of this process can end it with a signal.

    A terminal, `kill` of a group and a batch system signal every process of a run. The training process waits for
    this one, which must live until the run is saved. If the system does not say who sent a signal, nothing changes.
    """
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != parent:
        pass
    os._exit(0)  # as torch's own handler ends a worker


def end_children(patience: float = 0.1) -> None:
    """End the processes that `multiprocessing` has started from this one: ask every `patience` seconds until they end.

    Python asks once and waits without end. If a signal to the whole group still waits in a child, the system merges the
    parent's with it, and `leave_signals_to_parent` sees the other's alone.
    """
    for child in multiprocessing.active_children():
        while child.is_alive():
            child.terminate()
            child.join(patience)


class Stopped(BaseException):
    """The run has stopped as a signal asked. `status` is what a shell expects: 128 + the signal's number.

    No `Exception`, as KeyboardInterrupt is none: what reads a file and explains any error of it must not explain this.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.status = 128 + number


class StopSignals:
    """While this context lasts, the first SIGTERM or SIGINT is kept in `number`; a second one acts at once.

    Within `at_once` nothing needs to be finished, and the first one raises `Stopped` in the middle of it. Outside of
    the main thread Python allows no handlers, and signals act as usual. A signal that is ignored (`nohup`) stays so.
    """

    def __init__(self):
        self.number: int | None = None
        self.is_at_once = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self.before = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, *_unused) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._give_back()
        if self.is_at_once:
            self.raise_if_asked(NOTHING_NEW)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For work that can be done again and writes no file: an exception in the middle of a file could be lost."""
        self.raise_if_asked(NOTHING_NEW)
        self.is_at_once = True
        try:
            yield
        finally:
            self.is_at_once = False

    def raise_if_asked(self, saved: str) -> None:
        """Raise `Stopped` if a signal has come; `saved` says what is on the disk."""
        if self.number is not None:
            raise Stopped(self.number, f"stopped by {signal.Signals(self.number).name}; {saved}")
