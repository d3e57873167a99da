"""Ctrl-C in a script before and beside its `main`: while packages load, and in the processes of a pool."""

import signal


def end_at_once() -> None:
    """For a script that loads packages as it is read, before them: Ctrl-C then ends it without a trace.

    An interrupt within a package's C code would come out as that package's own error. `hear_again` is for `main`.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def hear_again() -> None:
    """After `end_at_once`: Ctrl-C raises KeyboardInterrupt again. One that is ignored (`nohup`) stays so."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave_interrupts_to_parent() -> None:
    """For the processes of a pool: a terminal sends Ctrl-C to each, and the process that made them ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
