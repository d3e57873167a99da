"""Faults of the machine in words, each with its fix: memory that ran out, and processes that load images."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sprc.core.errors import InputError
from sprc.core.stop_signals import NOTHING_NEW

OTHER_GPU = "wait for them, or take another GPU by `device` cuda:N or CUDA_VISIBLE_DEVICES"

OUT_OF_SHARED_MEMORY = ("Bus error", "for file </torch_", "to file </torch_", "shared memory object </torch_")
OUT_OF_HANDLES = ("Too many open files", "items of ancdata")


@contextmanager
def naming_place(place: str) -> Iterator[None]:
    """Have bad input, and numbers that are not finite, say at what place of a run they came up."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


@contextmanager
def explained(memory_fix: str) -> Iterator[None]:
    """Raise InputError if memory runs out, a loader process is killed, or one meets bad input."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise InputError(crowded_gpu(error) or memory_fix) from error
    except RuntimeError as error:
        if "CUDA error: out of memory" in str(error):  # not even room for CUDA itself
            raise InputError(f"other programs fill the GPU: {OTHER_GPU}; {NOTHING_NEW}") from error
        if "can't allocate memory" in str(error):  # torch's own allocator on the CPU
            raise InputError(memory_fix) from error
        told = loader_fault(str(error))
        if told:
            raise InputError(f"{told}; {NOTHING_NEW}") from error
        raise
    except InputError as error:
        _, found, message = str(error).rpartition(f"{InputError.__name__}: ")
        if found and "Original Traceback" in str(error):  # how a loader process hands over its errors
            raise InputError(message.strip()) from error
        raise


def loader_fault(message: str, shared: Path = Path("/dev/shm")) -> str:
    """What a RuntimeError's message says of a process that loads images, with the fix; "" for another subject."""
    if any(sign in message for sign in OUT_OF_SHARED_MEMORY):
        free, total = (size / 2**20 for size in (shutil.disk_usage(shared).free, shutil.disk_usage(shared).total))
        return (
            f"{shared}, through which the processes that load images hand them over, is too small: {free:.0f} of"
            f" {total:.0f} MiB are free. Use `num_workers` 0, or make it larger (docker: --shm-size=8g)"
        )
    if any(sign in message for sign in OUT_OF_HANDLES):
        return "the processes that load images have too many open files: raise ulimit -n, or lower `num_workers`"
    if re.search(r"DataLoader worker \(pid", message):  # it was killed: an error of its own has other words
        return (
            f"a process that loads images ended: {message.splitlines()[0]} It may have been short of memory: lower"
            " `num_workers`"
        )
    return ""


def crowded_gpu(error: Exception) -> str:
    """A message with its fix if other programs hold most of the GPU of which `error` speaks; else ""."""
    named = re.search(r"GPU (\d+) has a total", str(error))
    if named is None:
        return ""
    index, gib = int(named.group(1)), 2**30
    free, total = torch.cuda.mem_get_info(index)
    others = total - free - torch.cuda.memory_reserved(index)
    if others < total / 2:
        return ""
    return (
        f"other programs hold {others / gib:.1f} of {total / gib:.1f} GiB of cuda:{index}: {OTHER_GPU}; {NOTHING_NEW}"
    )


def training_memory_fix(batch_size: int, micro_batch: int | None = None, cached: bool = False) -> str:
    """What to say if a training's memory runs out; `cached`: whether it has a feature cache already."""
    at_once, or_cache = min(batch_size, micro_batch or batch_size), "" if cached else "`feature_cache` or "
    if at_once == 1:
        return f"one triplet at a time is too much for the memory: use {or_cache}a smaller `backbone`; {NOTHING_NEW}"
    return (
        f"{at_once} triplets at a time are too much for the memory: try {or_cache}`micro_batch` {at_once // 2}, which"
        f" keeps the batch of {batch_size} and its gradients; {NOTHING_NEW}"
    )
