"""What the processes of a training tell each other; a launcher starts one for each device."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from threading import Timer

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sprc.core.errors import InputError, first_line
from sprc.core.launch import Launch, find_launch
from sprc.core.logs import EVERY_RANK

logger = logging.getLogger(__name__)

# Longer than rank 0 scores a validation or writes a checkpoint, while the others wait for it.
TIMEOUT = timedelta(minutes=30)
SECONDS_OF_PATIENCE = 10


@dataclass(frozen=True)
class World:
    """This process is number `rank` of `size`. In a process that is alone, a method gives back its argument."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def rows_of_all(self, features: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Every rank's tensors of these names, in the order of ranks; their numbers of rows may differ.

        Gradients flow to this rank's own, times `size`. Every rank is to compute the same loss of them all. The mean
        of the ranks' gradients, which `DistributedDataParallel` takes, is then the gradient of that loss.
        """
        if self.size == 1:
            return [features]
        names = list(features)
        counts = torch.stack(self._from_all(torch.tensor([len(features[name]) for name in names])))  # (ranks, names)
        columns = zip(names, counts.T.tolist(), strict=True)
        rows = {name: self._rows_from_all(features[name], lengths) for name, lengths in columns}
        return [{name: parts[rank] for name, parts in rows.items()} for rank in range(self.size)]

    def _from_all(self, own: Tensor) -> list[Tensor]:
        """Every rank's tensor, all of one shape."""
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own)
        return parts

    def _rows_from_all(self, own: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Every rank's rows; this rank's own keep their graph."""
        if max(lengths) == 0:
            return [own] * self.size
        padding = (0, 0) * (own.dim() - 1) + (0, max(lengths) - len(own))
        parts = self._from_all(F.pad(own.detach(), padding).contiguous())
        parts = [part[:length] for part, length in zip(parts, lengths, strict=True)]
        parts[self.rank] = self._scaled(own)
        return parts

    def _scaled(self, own: Tensor) -> Tensor:
        if not own.requires_grad:
            return own
        view = own.view_as(own)  # a hook on `own` itself would scale what else it is used for
        view.register_hook(lambda gradient: gradient * self.size)
        return view

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all ranks as one tensor, in the order of ranks, without gradients; ranks may have any number."""
        if self.size == 1:
            return rows
        lengths = torch.cat(self._from_all(torch.tensor([len(rows)]))).tolist()
        return torch.cat(self._rows_from_all(rows.detach(), lengths))

    def collect(self, value) -> list:
        """Every rank's value, in the order of ranks."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def share(self, value):
        """Rank 0's value."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def largest(self, *numbers: int) -> list[int]:
        """The largest of all ranks, number by number. They go over the CPU, so that no rank waits for its GPU."""
        if self.size > 1:
            row = torch.tensor(numbers)
            dist.all_reduce(row, dist.ReduceOp.MAX)
            return row.tolist()
        return list(numbers)

    def wait(self) -> None:
        """Wait until every rank is here."""
        self.collect(None)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 does this before the others: they find what it downloads, and an error of rank 0 is raised by all."""
        if not self.is_main:
            error = self.share(None)
            if error is not None:
                raise error
            yield
            return
        try:
            yield
        except InputError as error:
            self.share(error)
            raise
        self.share(None)


ALONE = World()


def join_world(device: torch.device) -> World:
    """Meet the other processes of the launcher: NCCL between CUDA devices, gloo between CPUs; `ALONE` without one.

    Raises InputError if they do not come.
    """
    launch = find_launch()
    if launch is None:
        return ALONE
    if launch.on_this_machine:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all are on this machine: nobody else shall reach them
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _impatient(launch):
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def _impatient(launch: Launch) -> Iterator[None]:
    """Say after some seconds which processes this one waits for. Raise InputError if they never come."""
    awaited = f"all {launch.size} processes at {launch.address} (this one is rank {launch.rank})"
    told = Timer(SECONDS_OF_PATIENCE, partial(logger.warning, f"waiting for {awaited}", extra=EVERY_RANK))
    told.daemon = True
    told.start()
    try:
        yield
    except RuntimeError as error:  # of the store, of the network, of gloo: all are of this type
        raise InputError(
            f"{awaited} should have met, and did not ({first_line(error)}): start them all, with the same WORLD_SIZE,"
            " MASTER_ADDR and MASTER_PORT, or use torchrun"
        ) from error
    finally:
        told.cancel()


def leave_world() -> None:
    """Leave the other processes at the end of all work."""
    if dist.is_initialized():
        dist.destroy_process_group()
