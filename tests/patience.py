"""How long a test waits for what must come: long, as a wait that ends at once costs nothing and CI may be slow."""

import time
from collections.abc import Callable

PATIENCE = 300.0  # seconds; what hangs still fails with its words before CI's own limit ends everything


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Fails, with `what` as its words, if the condition does not come true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.005)
