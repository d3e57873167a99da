"""What is seen through boxes, what attention prefers in an image, and the loss of `foreground`: pure functions.

Shapes: B images, N boxes of all of them, P patches, Q target tokens, E width of the retrieval space. An *owner* (N,)
says to which image of the batch a box belongs. Boxes are xyxy in [0, 1] of the input frame.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lavis.models.blip2_models.region import PREFIX_TOKENS, contrast_of
from lavis.models.blip2_models.scores import token_scores

LEAST_COVERED = 1 / 3  # of a patch's width, and of its height
MOST_REVEALED = 0.5  # of the patches outside the boxes


def patches_in_boxes(boxes: Tensor, owners: Tensor, batch: int, grid: tuple[int, int]) -> Tensor:
    """(N, 4), (N,) -> (B, H W) bool: whether a patch of the grid (H, W) belongs to a box of its image.

    A box has a patch if it covers more than a third of its width and of its height. It always has the patch at its
    centre, so that no box is without one.
    """
    height, width = grid
    columns = _covered(boxes[:, 0] * width, boxes[:, 2] * width, width)  # (N, W)
    rows = _covered(boxes[:, 1] * height, boxes[:, 3] * height, height)  # (N, H)
    cells = (rows[:, :, None] & columns[:, None]).flatten(1)  # -> (N, H W)
    of_image = owners == torch.arange(batch, device=owners.device)[:, None]  # (B, N)
    return of_image.float() @ cells.float() > 0  # (B, N) x (N, H W) -> (B, H W)


def _covered(first: Tensor, last: Tensor, count: int) -> Tensor:
    """Intervals from `first` to `last` (N,), in cells -> (N, count) bool: which cells of a row they have."""
    starts = torch.arange(count, device=first.device)
    overlap = torch.minimum(last[:, None], starts + 1) - torch.maximum(first[:, None], starts)  # (N, count)
    middle = ((first + last) / 2).floor().clamp(max=count - 1)
    return (overlap > LEAST_COVERED) | (starts == middle[:, None])


def revealed_patches(patches: Tensor) -> Tensor:
    """(B, P) bool -> bool: random patches of an image, a share of them that is drawn from 0 to `MOST_REVEALED`.

    Boxes of a detector miss objects. A view that sees a part of what is outside them may see those too.
    """
    share = torch.rand(len(patches), 1, device=patches.device) * MOST_REVEALED
    return torch.rand(patches.shape, device=patches.device) < share


def views_of(patches: Tensor, revealed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(B, P) bool -> what two views see, (B, 2, P + 1) bool, CLS first; and which images have a patch, (B,) bool.

    The first view sees the whole image. The second sees those patches and the revealed ones (B, P), and not CLS, which
    has seen everything. An image without a patch of its own is seen whole.
    """
    has_patch = patches.any(dim=1)
    seen = patches if revealed is None else patches | revealed
    inside = F.pad(seen, (PREFIX_TOKENS, 0))  # (B, P) -> (B, P + 1)
    whole = torch.ones_like(inside)
    return torch.stack([whole, inside | ~has_patch[:, None]], dim=1), has_patch


def outside_bias(patches: Tensor, strength: float) -> Tensor:
    """(B, P) bool -> (B, 1, 1, P + 1) float32, CLS first: `-strength` for the patches that are not in `patches`.

    An image without any has 0 everywhere.
    """
    outside = ~patches & patches.any(dim=1, keepdim=True)
    return F.pad(-strength * outside.float(), (PREFIX_TOKENS, 0))[:, None, None]


def foreground_loss(
    queries: tuple[Tensor, Tensor], tokens: tuple[Tensor, Tensor], has_boxes: Tensor, scale: Tensor, same: Tensor
) -> Tensor:
    """SPRC's own loss on what is seen through the boxes: the query finds its target in the batch, as a sum of three.

    The query of the whole reference finds targets seen through their boxes; the query of the reference seen so finds
    whole targets; and it finds targets seen so. No parameter is new. Most of a background is hidden: it is hard to
    learn by heart.

    Args:
        queries: (B, E) of whole references and of those seen through boxes, L2-normalised.
        tokens: target tokens (B, Q, E) of whole targets and of those seen through boxes, L2-normalised.
        has_boxes: (B, 2), of references and targets. One without is no anchor or no candidate if it has to be seen so.
        scale: 1 / temperature.
        same: (B, B), places with the same target image, which are no negatives.
    """
    (whole_query, query), (whole_target, target) = queries, tokens
    reference_has, target_has = has_boxes.unbind(dim=1)
    every = torch.ones_like(target_has)
    return (
        _query_to_target(whole_query, target, every, target_has, scale, same)
        + _query_to_target(query, whole_target, reference_has, every, scale, same)
        + _query_to_target(query, target, reference_has, target_has, scale, same)
    )


def _query_to_target(
    queries: Tensor, tokens: Tensor, is_anchor: Tensor, is_candidate: Tensor, scale: Tensor, same: Tensor
) -> Tensor:
    """The mean loss of the anchors whose own target is a candidate; 0, with a gradient of 0, without any."""
    places = torch.arange(len(queries), device=queries.device)
    logits = token_scores(queries, tokens) * scale  # (B, B)
    return contrast_of(is_anchor & is_candidate, logits, places, same | ~is_candidate)
