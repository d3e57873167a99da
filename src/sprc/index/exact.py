"""The exact engine: every token of every image, a bounded part of the gallery at a time, on the CPU or a GPU."""

import numpy as np
import torch
from torch import Tensor

from sprc.index.gallery import Gallery
from sprc.index.scores import chunk_sizes, fill_scores

HALF_AN_ULP = 2.0**-24  # of a float32 near 1
TF32_ULP = 2.0**-10
CACHED = 2**21  # numbers in float32, 8 MiB, that a CPU's cache may hold: twice as fast as parts of 64 MiB


def rounding(width: int, device: torch.device) -> float:
    """A bound on the error of a cosine of `width` products in float32, or in TF32 if that is what the device uses."""
    tf32 = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return width * HALF_AN_ULP + (2 * TF32_ULP if tf32 else 0)


class ExactEngine:
    """Scores in float32 as `gallery_scores`, and proposes every image that rounding may keep from the best k."""

    def __init__(self, gallery: Gallery, memory_mib: float = 256, device: torch.device | str = "cpu"):
        self.gallery, self.memory_mib, self.device = gallery, memory_mib, torch.device(device)
        self.margin = 2 * rounding(gallery.maker.width, self.device)

    def candidates(self, queries: np.ndarray, k: int) -> list[np.ndarray]:
        """As `Engine.candidates`. All scores of a part of the queries take at most half of the memory bound.

        Raises InputError for damaged tokens that are no numbers.
        """
        at_once = max(1, int(self.memory_mib * 2**20 / 2 // (8 * len(self.gallery))))
        return [places for part in torch.from_numpy(queries).split(at_once) for places in self._of_part(part, k)]

    def _of_part(self, queries: Tensor, k: int) -> list[np.ndarray]:
        scores = self._scores(queries.to(self.device))  # (B, N)
        if scores.isnan().any():
            raise self.gallery.damage()
        kth = scores.topk(k, dim=1).values[:, -1:]  # (B, 1)
        near = scores >= kth - self.margin
        return [row.nonzero()[:, 0].cpu().numpy() for row in near]

    def _scores(self, queries: Tensor) -> Tensor:
        """(B, E) -> (B, N), on the device."""
        maker, count = self.gallery.maker, len(self.gallery)
        at_once, images = chunk_sizes((count, maker.tokens, maker.width), 2, self.memory_mib / 2)
        if self.device.type == "cpu":
            images = min(images, max(1, CACHED // (maker.tokens * maker.width)))
        scores = torch.empty(len(queries), count, device=self.device)
        for start in range(0, count, images):
            stop = min(start + images, count)
            tokens = torch.from_numpy(self.gallery.tokens(start, stop))  # (n, Q, E) float16
            fill_scores(scores[:, start:stop], queries, tokens, at_once)
        return scores
