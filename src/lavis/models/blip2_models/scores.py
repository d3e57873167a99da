"""Cosines between queries and the target tokens of images, in float32 whatever the precision around them."""

import torch
import torch.nn.functional as F
from torch import Tensor

INITIAL_TEMPERATURE = 0.07


def token_scores(queries: Tensor, target_tokens: Tensor) -> Tensor:
    """(B, E), (N, Q, E) -> (B, N): the largest cosine over each image's tokens, as one float32 matrix product."""
    with torch.autocast(queries.device.type, enabled=False):
        scores = queries.float() @ target_tokens.float().flatten(0, 1).T  # (B, E) x (E, N Q) -> (B, N Q)
        return scores.view(len(queries), *target_tokens.shape[:2]).amax(dim=2)


def unit(features: Tensor) -> Tensor:
    """L2-normalised over the last axis, in float32."""
    with torch.autocast(features.device.type, enabled=False):
        return F.normalize(features.float(), dim=-1)
