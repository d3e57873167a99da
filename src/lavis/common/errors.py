"""The one exception that means: the user's input is wrong, and here is the cure; and other errors in a line."""


class InputError(ValueError):
    """Bad input: a file, an entry, a flag. The message names it and says what to do.

    Command-line scripts print the message alone and exit with status 2 (`utils.run_main`).
    """


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error) or type(error).__name__).splitlines()[0]
