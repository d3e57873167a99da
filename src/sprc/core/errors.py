"""The one exception that means: the user's input is wrong, and here is the cure; and other errors in a line."""

import reprlib

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


class InputError(ValueError):
    """Bad input: a file, an entry, a flag. The message names it and says what to do.

    Command-line scripts print the message alone and exit with status 2 (`sprc.core.command_line.run_main`).
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def shown(value) -> str:
    """A value of a file in a message, shortened: it may be anything, of any size."""
    return _short.repr(value)


class ImageError(InputError):
    """An image cannot be read: `reason`, and what to do about it. Whoever knows the file names it."""

    def __init__(self, reason: str, fix: str = "copy or download it again"):
        super().__init__(reason, fix)
        self.reason, self.fix = reason, fix

    def __str__(self) -> str:
        return f"{self.reason}: {self.fix}"
