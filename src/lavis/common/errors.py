"""The one exception that means: the user's input is wrong, and here is the cure."""


class InputError(ValueError):
    """Bad input: a file, an entry, a flag. The message names it and says what to do.

    Command-line scripts print the message alone and exit with status 2 (`utils.run_main`).
    """
