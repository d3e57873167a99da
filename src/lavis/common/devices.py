"""Moving small tensors to a device without waiting for it."""

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device, by way of pinned memory: a copy from elsewhere makes the host wait for CUDA."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
