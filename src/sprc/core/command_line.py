"""Small things that several command-line scripts share."""

import argparse
import errno
import io
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from sprc.core.errors import InputError
from sprc.core.interrupts import hear_again
from sprc.core.launch import any_rank, find_launch, require_one_process, speaker, tell_the_launcher
from sprc.core.logs import as_flags, show_logs
from sprc.core.reading import expanded
from sprc.core.stop_signals import NOTHING_NEW, Stopped, end_children

DEBUG = "--debug"
SHELL_SPEAKS = "SPRC_SHELL_SPEAKS"  # set by a shell script that says by itself that it was interrupted
NO_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EPIPE)
# Read by huggingface_hub and timm.
WHOLE_NUMBERS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT", "TIMM_FUSED_ATTN", "TIMM_USE_OLD_CACHE")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Every default on the page, except those that say nothing: a switch's False, and None; and `--debug`."""

    def format_help(self) -> str:
        return f"{super().format_help()}\n{DEBUG} shows the trace of an error.\n"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.required:
            return action.help
        return super()._get_help_string(action)


def run_main(main: Callable[[], object], in_group: bool = False) -> None:
    """Run a script: bad input is one line on stderr and status 2, an interrupt status 130; a bug keeps its trace.

    An error of the system that names a file is bad input too. `--debug`, which every script takes, shows the trace of
    these as well. What library code logs is printed. Parameters that a message names come out as flags (`as_flags`).
    `in_group` is for the script that several processes may run together.
    """
    debug = DEBUG in sys.argv
    sys.argv = [word for word in sys.argv if word != DEBUG]
    print_any_character()
    show_logs()
    try:
        hear_again()
        check_environment()
        if not in_group:
            require_one_process()
        main()
        print(end="", flush=True)
    except (InputError, OSError) as error:
        unnamed = isinstance(error, OSError) and error.filename is None
        lost = lost_output(error)
        before = speaker()
        if (unnamed and not lost) or debug:
            traceback.print_exc()
        if unnamed and not lost:
            sys.exit(1)
        told = as_flags(f"error: {lost or (error if isinstance(error, InputError) else _named_fault(error))}")
        _tell(before + told)
        tell_the_launcher(told)
        _end(2)
    except Stopped as stop:
        _end_quietly(as_flags(str(stop)), stop.status)
    except KeyboardInterrupt:
        _end_quietly("" if SHELL_SPEAKS in os.environ else "interrupted", 130)


def check_environment() -> None:
    """Raise InputError for a variable that is no whole number, but that a package reads as one on import."""
    for name in (name for name in WHOLE_NUMBERS if os.environ.get(name)):
        if not re.fullmatch(r"[+-]?\d+", os.environ[name].strip()):
            raise InputError(f"the variable {name} is {os.environ[name]!r}: set it to a whole number, or unset it")


def _end_quietly(line: str, status: int) -> NoReturn:
    """End as a signal has asked. Every process of a group has heard it; one of them says so."""
    if line and any_rank() == 0:
        _tell(line)
    end_children()
    _end(status)


def _end(status: int) -> NoReturn:
    """End with a status. What an output did not take is given up: Python would try again, and end with 120 instead."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)


def _tell(line: str) -> None:
    """A line on stderr, if that takes it: a full disk may hold this output as well."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def lost_output(error: InputError | OSError) -> str:
    """What is wrong with an output of this process if that has raised `error`, and the fix; else "".

    Such an error names no file: so one more character is tried.
    """
    if not isinstance(error, OSError) or error.filename is not None or error.errno not in NO_OUTPUT:
        return ""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            os.write(stream.fileno(), b"\n")
        except OSError as another:
            if another.errno == error.errno:
                return (
                    f"what this script prints cannot be written ({error.strerror}): free some space, or have it"
                    f" printed elsewhere; {NOTHING_NEW}"
                )
    return ""


def print_any_character() -> None:
    """Print a character that the terminal lacks, or a byte that is no text, as an escape instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _named_fault(error: OSError) -> str:
    return f"{os.fsdecode(error.filename)}: {error.strerror}"


def hide_bars_of_other_ranks() -> None:
    """No progress bars of a group's other processes, as their logs are not shown; errors stay.

    tqdm reads its environment when it is imported, and torch's and transformers' packages import it: this comes first.
    """
    launch = find_launch()
    if launch is not None and launch.rank != 0:
        os.environ["TQDM_DISABLE"] = "1"


def absolute(path: str | Path) -> Path:
    """A path that the user has written, from the root: `~` is a home folder, also in `--flag=~/x`.

    Raises InputError for the home folder of a user who does not exist.
    """
    return expanded(path).absolute()


def user_path(text: str) -> Path:
    """An argparse type: a path as it was typed, with `~` as the home folder."""
    try:
        return expanded(text)
    except InputError as error:  # argparse would say "invalid value"
        raise argparse.ArgumentTypeError(str(error)) from error


def require_png(output: Path, what: str) -> None:
    """Raise InputError for the `--output` of a script that writes `what`, if its name is that of another kind."""
    if output.suffix.lower() != ".png":
        raise InputError(f"--output {output}: {what} is a PNG file; give a name that ends in .png")


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    return _whole_number(text, 1)


def non_negative_int(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError as error:  # argparse would name the function
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from error
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, not {value}")
    return value
