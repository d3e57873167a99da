"""Where and how numbers are computed: the device, the precision, and the processes that compute together."""

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from sprc.core.errors import InputError
from sprc.core.launch import Launch, find_launch
from sprc.core.process_group import ALONE, World

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Runtime:
    """Where and how numbers are computed: the device, and the processes that compute together.

    `dtype` is what autocast uses in training, `scoring` in evaluation; float32 switches it off.
    """

    device: torch.device
    dtype: torch.dtype
    scoring: torch.dtype = torch.float32
    world: World = ALONE

    def autocast(self, dtype: torch.dtype | None = None) -> AbstractContextManager:
        """Autocast to `dtype`, or the type of training."""
        dtype = dtype or self.dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32)


def choose_runtime(device: str = "auto", precision: str = "auto") -> Runtime:
    """The runtime of a device and a precision.

    Device `auto` is CUDA if this machine has it, else the CPU; in a group of processes each has its own. Precision
    `auto` trains in bf16 on CUDA, in fp16 on a device without bf16, and in fp32 on the CPU. It evaluates in fp32, as
    upstream, but for the ViT. Raises InputError for what this machine cannot do.
    """
    chosen = choose_device(device)
    scoring = "fp32" if precision == "auto" else precision
    precision = best_precision(chosen) if precision == "auto" else precision
    if precision not in PRECISIONS:
        raise InputError(f"`precision` {precision!r} is unknown: use auto, {', '.join(PRECISIONS)}")
    if chosen.type == "cpu" and precision != "fp32":
        raise InputError(f"`precision` {precision} needs a CUDA device; on the CPU use fp32")
    return Runtime(chosen, PRECISIONS[precision], PRECISIONS[scoring])


def choose_device(name: str) -> torch.device:
    """The device of `auto`, `cpu`, `cuda` or `cuda:N`. In a group, `cuda` is the GPU of this process.

    Raises InputError for another name, for a device that torch does not see, and for one that all processes of a
    group would share.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", name)
    if match is None:
        raise InputError(f"`device` {name!r} is not a device that this project runs on: use auto, cpu, cuda or cuda:N")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    launch, count = find_launch(), torch.cuda.device_count()
    index = None if match.group(1) is None else int(match.group(1))
    if launch is not None:
        index = _gpu_of_process(index, launch)
    if (index or 0) >= count:
        asked = name if index is None else f"cuda:{index}"
        raise InputError(f"`device` {asked}: torch {torch.__version__} sees {count} CUDA devices")
    return torch.device("cuda") if index is None else torch.device("cuda", index)


def _gpu_of_process(given: int | None, launch: Launch) -> int:
    """The GPU of one of several processes. Raises InputError if nothing says which, or if all would share one."""
    if given is not None:
        if launch.local_size > 1:
            raise InputError(f"`device` cuda:{given} puts {launch.local_size} processes on one GPU: use `device` cuda")
        return given
    if launch.local_rank is None:
        raise InputError("LOCAL_RANK, the number of this process on its machine, is not set: it names its GPU")
    return launch.local_rank


def best_precision(device: torch.device) -> str:
    """The precision of `auto` on this device. torch answers for the current device, so this one becomes it."""
    if device.type != "cuda":
        return "fp32"
    with torch.cuda.device(device):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
