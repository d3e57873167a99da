"""How long a test waits for what must come: long, as a wait that ends at once costs nothing and CI is slow."""

import time
from collections.abc import Callable

PATIENCE = 600.0  # seconds


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Fails, with `what` as its words, if the condition does not come true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)
