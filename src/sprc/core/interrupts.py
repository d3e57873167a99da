"""Ctrl-C in a script before and beside its `main`: while packages load, and in the processes of a pool.

As a program, `interrupts.py SCRIPT FLAGS` runs a script that Ctrl-C ends without a trace from its first line on. The
shell scripts start theirs so, and say themselves that they were interrupted.
"""

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


def run_script() -> None:
    """Run the script that the command line names, with its flags, as Python itself would.

    Ctrl-C ends it at once, until it calls `hear_again`.
    """
    end_at_once()
    import os  # after it: every import is a moment in which Ctrl-C would show a trace
    import runpy
    import sys

    words = sys.argv[1:]
    sys.argv, sys.path[0] = words, os.path.dirname(os.path.realpath(words[0]))
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    run_script()
