"""What a spawned process of a test runs, in a module that loads neither torch nor the test."""

import time
from multiprocessing.synchronize import Event

from sprc.core.stop_signals import leave_signals_to_parent


def wait_for_signals(ready: Event) -> None:
    leave_signals_to_parent(0)
    ready.set()
    time.sleep(3600)
