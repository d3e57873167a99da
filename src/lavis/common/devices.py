"""Moving small tensors to a device without waiting for it."""

import torch
from torch import Tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device, through pinned memory: from other memory the host would wait for CUDA."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
