"""What library code says: it logs, below the loggers `sprc` and `lavis`, and scripts show that on stdout.

From Python nothing is set up: `logging.basicConfig(level="INFO")` shows the same.
"""

import logging
import re
import sys

from sprc.core.launch import any_rank

PACKAGES = ("sprc", "lavis")
# `logger.warning(text, extra=EVERY_RANK)`: for what each process has to say of itself, on stderr.
EVERY_RANK = {"every_rank": True}
_PARAMETER = re.compile(r"`([a-z][a-z0-9_]*)`")


def as_flags(message: str) -> str:
    """A message in the words of the command line: "use `micro_batch` 8" -> "use --micro-batch 8".

    Library code names a parameter, in backticks, since its caller may have no command line.
    """
    return _PARAMETER.sub(lambda match: "--" + match[1].replace("_", "-"), message)


class ScriptHandler(logging.Handler):
    """Prints the bare message, in the words of the command line, to the stdout of this moment.

    Of a group of processes only rank 0 speaks. A disk that is full or a pipe that is closed raises OSError, as for
    `print`; logging's own handlers would hide it.
    """

    on_stderr = False

    def emit(self, record: logging.LogRecord) -> None:
        on_stderr = self.on_stderr or getattr(record, "every_rank", False)
        print(as_flags(record.getMessage()), file=sys.stderr if on_stderr else sys.stdout, flush=True)


def _of_rank_0(record: logging.LogRecord) -> bool:
    return any_rank() == 0 or getattr(record, "every_rank", False)


_HANDLER = ScriptHandler()
_HANDLER.addFilter(_of_rank_0)


def show_logs(on_stderr: bool = False) -> None:
    """Have this process print what library code logs, from INFO up; a second call changes the stream alone.

    It goes to stderr if stdout is for a program that reads the result.
    """
    _HANDLER.on_stderr = on_stderr
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(_HANDLER)
