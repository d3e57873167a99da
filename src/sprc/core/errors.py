"""The one exception that says: the input is wrong, and this is the fix. And other errors in a line."""

import reprlib

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


class InputError(ValueError):
    """Bad input: a file, an entry, a parameter. The message names it and says what to do.

    A parameter stands in backticks under its Python name. Command-line scripts print the message alone, with flags in
    the place of parameters, and exit with status 2 (`sprc.core.command_line.run_main`).
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]


def printable(text: str) -> str:
    """A text in one line of a terminal: line breaks, control characters and what is no character become escapes."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def shown(value) -> str:
    """A value out of a file, shortened for a message: it may be of any type and size."""
    return _short.repr(value)


class ImageError(InputError):
    """An image cannot be read: `reason`, and what to do about it. Code that knows the file adds its name."""

    def __init__(self, reason: str, fix: str = "copy or download it again"):
        super().__init__(reason, fix)
        self.reason, self.fix = reason, fix

    def __str__(self) -> str:
        return f"{self.reason}: {self.fix}"
