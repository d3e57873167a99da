"""What each process of a loader does before its first batch."""

from multiprocessing.queues import Queue

from torch._utils import ExceptionWrapper

from sprc.core.stop_signals import leave_signals_to_parent


def prepare_worker(worker: int) -> None:
    """A `worker_init_fn` for a training: the parent handles signals, and gets the error if a batch cannot be sent."""
    leave_signals_to_parent(worker)
    send_queue_errors(worker)


def send_queue_errors(_worker: int) -> None:
    """A `worker_init_fn`: a batch that cannot be sent is an error in the parent.

    A thread of the queue sends the tensors of a list through /dev/shm. If that is full, Python prints a trace and drops
    the batch, and the parent waits for it without end. The method is Python's own hook for such an error.
    """
    Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]


def _send_error(queue: Queue, _error: Exception, item: tuple) -> None:
    """`item` is torch's (number of the batch, batch); torch accepts an error in the place of the batch."""
    queue.put((item[0], ExceptionWrapper(where="in a process that loads images")))
