"""Ctrl-C outside of a script's `main`: while packages load, and in the processes of a pool.

As a program, `interrupts.py SCRIPT FLAGS` runs a script that Ctrl-C ends without a trace from its first line on. The
shell scripts start Python so, and report the interrupt themselves.
"""

import signal


def end_at_once() -> None:
    """Have Ctrl-C end a script without a trace while it loads packages: call this before their imports.

    An interrupt within a package's C code would come out as that package's own error. `main` calls `hear_again`.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def hear_again() -> None:
    """After `end_at_once`: have Ctrl-C raise KeyboardInterrupt again. If it is ignored (`nohup`), it stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave_interrupts_to_parent() -> None:
    """For the processes of a pool: ignore Ctrl-C. A terminal sends it to each of them, but their parent ends them."""
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
