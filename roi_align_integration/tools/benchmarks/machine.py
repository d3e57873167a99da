"""What the benchmarks say and ask of the machine that they run on."""

import os
import platform

import torch


def machine_name(device: str) -> str:
    """For a table: the GPU, that `device` (auto, cpu, cuda, cuda:N) means, else the CPU; and torch's version."""
    if device != "cpu" and torch.cuda.is_available():
        named = None if device == "auto" else torch.device(device)
        return f"{torch.cuda.get_device_name(named)} torch {torch.__version__}"
    return f"{os.cpu_count()} {platform.machine()} cores torch {torch.__version__}"


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was told; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
