"""Ctrl-C while a script's packages load, before its `main` runs: one line and no trace. Import this before them."""

import signal
import sys


def _print_error(kind: type[BaseException], error: BaseException, trace) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _print_error


def leave_interrupts_to_parent() -> None:
    """For the processes of a pool: a terminal sends Ctrl-C to each, and the process that made them ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
