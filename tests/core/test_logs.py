"""What library code says, and what a script shows of it."""

import logging
import subprocess
import sys

import pytest
from training_flags import ENVIRONMENT

from sprc.core.logs import EVERY_RANK, show_logs

LOG = """
import logging
{before}
logger = logging.getLogger("lavis.models")
logger.info("use `micro_batch` 8")
logger.debug("hidden")
"""


@pytest.mark.parametrize("rank, said", [(None, "sprc: --seed\n"), ("0", "sprc: --seed\n"), ("1", "")])
def test_rank_0_speaks(rank, said, monkeypatch, capsys):
    if rank is not None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
    show_logs()
    show_logs()  # a second call changes nothing
    logging.getLogger("sprc.data").info("sprc: `seed`")
    logging.getLogger("lavis.models").debug("too much")
    logging.getLogger("sprc.core").warning("mine", extra=EVERY_RANK)
    assert capsys.readouterr() == (said, "mine\n")


@pytest.mark.parametrize("before, said", [("", ""), ("from sprc.core.logs import show_logs; show_logs()", "use --mi")])
def test_nothing_is_shown_unless_asked_for(before, said):
    words = [sys.executable, "-c", LOG.format(before=before)]
    told = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert told.stdout.startswith(said) and told.stdout.count("\n") == bool(said)
    assert told.stderr == ""
