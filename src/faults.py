"""Faults of the machine in words, each with its cure; and the step at which a loss became no number."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from distributed import World
from lavis.common.errors import InputError, first_line
from lavis.common.files import write_atomically
from stop_signals import NOTHING_NEW

BROKEN_STEP = "broken_step.json"
OTHER_GPU = "wait for them, or take another GPU by --device cuda:N or CUDA_VISIBLE_DEVICES"
LOWER = "lower --learning-rate, or use --precision bf16 or fp32"


@contextmanager
def explained(memory_cure: str) -> Iterator[None]:
    """Have memory that ran out, a loader process that was killed, and bad input that one met raise InputError."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise InputError(crowded_gpu(error) or memory_cure) from error
    except RuntimeError as error:
        if "CUDA error: out of memory" in str(error):  # not even room for CUDA itself
            raise InputError(f"other programs fill the GPU: {OTHER_GPU}; {NOTHING_NEW}") from error
        if "can't allocate memory" in str(error):  # torch's own allocator on the CPU
            raise InputError(memory_cure) from error
        if "DataLoader worker" in str(error):
            raise InputError(
                f"a process that loads images ended: {first_line(error)} It may have been short of memory:"
                f" lower --num-workers; {NOTHING_NEW}"
            ) from error
        raise
    except InputError as error:
        _, found, message = str(error).rpartition(f"{InputError.__name__}: ")
        if found and "Original Traceback" in str(error):  # how a loader process hands over its errors
            raise InputError(message.strip()) from error
        raise


def crowded_gpu(error: Exception) -> str:
    """Where other programs hold most of the GPU that `error` says ran out of memory: that, and the cure; else ""."""
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


def training_memory_cure(batch_size: int, micro_batch: int | None = None, cached: bool = False) -> str:
    """What to say where a training's memory ran out; `cached` where it has a feature cache already."""
    at_once, or_cache = min(batch_size, micro_batch or batch_size), "" if cached else "--feature-cache or "
    if at_once == 1:
        return f"one triplet at a time is too much for the memory: use {or_cache}a smaller --backbone; {NOTHING_NEW}"
    return (
        f"{at_once} triplets at a time are too much for the memory: try {or_cache}--micro-batch {at_once // 2}, which"
        f" keeps the batch of {batch_size} and its gradients; {NOTHING_NEW}"
    )


class LossWatch:
    """Keeps the losses of the last steps on their device, to be read at intervals: reading waits for a GPU."""

    def __init__(self, model: nn.Module, run_folder: Path, world: World):
        self.model, self.run_folder, self.world = model, run_folder, world
        self.recent: list[tuple[int, dict[str, Tensor], list[dict]]] = []

    def add(self, step: int, losses: dict[str, Tensor], batch: dict | list) -> None:
        """`batch` is the loader's: a dictionary has names and captions."""
        self.recent.append((step, {name: loss.detach() for name, loss in losses.items()}, triplets_of(batch)))

    def check(self, epoch: int) -> None:
        """Raises InputError where nothing good can follow: a loss that is no number, or a temperature not above 0."""
        recent, self.recent = self.recent, []
        for step, losses, triplets in recent:
            values = {name: loss.item() for name, loss in losses.items()}
            if not all(map(math.isfinite, values.values())):
                self._stop(epoch, step, values, triplets)
        temperature, where = self.model.temp.item(), f"epoch {epoch}, step {recent[-1][0] if recent else 0}"
        if not temperature > 0:
            raise InputError(
                f"the temperature fell to {temperature:.4g} by {where}, and scores are divided by it: lower"
                f" --learning-rate or train for fewer epochs; {NOTHING_NEW}"
            )

    def check_weights(self, epoch: int) -> None:
        """Raises InputError where a weight is no number: such a state never takes the place of a good one."""
        self.check(epoch)
        sums = torch.stack([p.detach().float().sum() for p in self.model.parameters() if p.requires_grad])
        if not sums.isfinite().all():
            raise InputError(f"weights became NaN or infinite in epoch {epoch}: {LOWER}; {NOTHING_NEW}")

    def _stop(self, epoch: int, step: int, values: dict[str, float], triplets: list[dict]) -> None:
        """Save the step for a replay, and raise: every rank comes here with the same losses."""
        everything = [triplet for of_rank in self.world.collect(triplets) for triplet in of_rank]
        path = self.run_folder / BROKEN_STEP
        if self.world.is_main:
            losses = {name: str(value) for name, value in values.items()}
            record = {"epoch": epoch, "step": step, "losses": losses, "triplets": everything}
            write_atomically(path, json.dumps(record, indent=2, ensure_ascii=False))
        broken = ", ".join(name for name, value in values.items() if not math.isfinite(value))
        images = ", ".join(triplet["reference_name"] for triplet in everything[:3])
        raise InputError(
            f"{broken} became NaN or infinite in epoch {epoch}, step {step}, with {len(everything)} triplets, the first"
            f" of the images {images or 'unknown'}; all are in {path}. {LOWER}; --resume goes on from the last state,"
            f" and comes by this step again; {NOTHING_NEW}"
        )


def triplets_of(batch: dict | list) -> list[dict]:
    """Names and captions of a batch of the loader, triplet by triplet; none where it holds no names."""
    if not isinstance(batch, dict):
        return []
    names = ("reference_name", "target_name", "caption")
    return [dict(zip(names, triplet, strict=True)) for triplet in zip(*(batch[name] for name in names), strict=True)]
