"""The processes of a loader: what each does before its first batch."""

from multiprocessing.queues import Queue

from torch._utils import ExceptionWrapper

from sprc.core.stop_signals import leave_signals_to_parent


def prepare_worker(worker: int) -> None:
    """A `worker_init_fn` for a training: signals are the parent's, and so is an error of handing a batch over."""
    leave_signals_to_parent(worker)
    send_queue_errors(worker)


def send_queue_errors(_worker: int) -> None:
    """A `worker_init_fn`: a batch that cannot be handed over is an error in the parent.

    Tensors in a list go through /dev/shm while a thread of the queue sends them. If that is full, Python prints a trace
    and drops the batch, and the parent waits for it forever. The method is Python's own hook for such an error.
    """
    Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]


def _send_error(queue: Queue, _error: Exception, item: tuple) -> None:
    """`item` is torch's (number of the batch, batch); it takes an error in the batch's place."""
    queue.put((item[0], ExceptionWrapper(where="in a process that loads images")))
