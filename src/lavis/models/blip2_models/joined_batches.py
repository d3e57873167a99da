"""Join the features of several batches, of micro-batches or of many GPUs, before the losses."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

# An entry whose name ends so numbers the images of its own batch.
OWNERS = "_owners"


def joined_features(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What `embed` gave for several batches, in their order, as of one batch. All have the same names."""
    if len(parts) == 1:
        return parts[0]
    sizes = [len(part["query"]) for part in parts]
    firsts = [0, *accumulate(sizes)][:-1]  # number of each batch's first image
    return {
        name: torch.cat([
            part[name] + first if name.endswith(OWNERS) else part[name]
            for part, first in zip(parts, firsts, strict=True)
        ])
        for name in parts[0]
    }  # fmt: skip
