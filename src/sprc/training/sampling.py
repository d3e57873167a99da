"""Which triplets a step takes: an order that depends on seed and epoch alone, shared by all ranks."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from sprc.core.errors import InputError
from sprc.core.process_group import ALONE, World
from sprc.data.batches import make_loader
from sprc.data.triplets import Triplets
from sprc.training.config import TrainConfig


def derived_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """A seed for one epoch of one process: the same wherever and however often that epoch is run."""
    parts = [seed, epoch, rank] if rank else [seed, epoch]
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class EpochSampler(Sampler[int]):
    """This rank's part of a shuffled order that depends on (seed, epoch) alone, not on workers or on what ran before.

    A step takes `batch_size` triplets for every rank, in the order of ranks; those that make no whole step are left
    out, as upstream does. `start` steps are done.
    """

    def __init__(self, length: int, batch_size: int, seed: int, world: World):
        self.length, self.batch_size, self.seed, self.world = length, batch_size, seed, world
        self.epoch, self.start = 0, 0

    @property
    def steps(self) -> int:
        return self.length // (self.batch_size * self.world.size)

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator)
        whole = order[: len(self) * self.world.size].view(self.steps, self.world.size, self.batch_size)
        return iter(whole[self.start :, self.world.rank].flatten().tolist())


def make_train_loader(dataset: Triplets, config: TrainConfig, device: torch.device, world: World = ALONE) -> DataLoader:
    """Shuffled whole batches. Raises InputError if there is none for every rank."""
    needed = config.batch_size * world.size
    if len(dataset) < needed:
        ranks = f" on each of {world.size} ranks" if world.size > 1 else ""
        raise InputError(f"`batch_size` {config.batch_size}{ranks} is more than the {len(dataset)} triplets: lower it")
    sampler = EpochSampler(len(dataset), config.batch_size, config.seed, world)
    return make_loader(dataset, config.batch_size, config.num_workers, device, sampler=sampler, drop_last=True)
