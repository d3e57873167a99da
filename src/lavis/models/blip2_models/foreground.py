"""What is seen of an image through its boxes, and the loss of the objective `foreground`, as pure functions.

Shapes: B images, N boxes of all of them, P patches, Q target tokens, E width of the retrieval space. An *owner* (N,)
says to which image of the batch a box belongs. Boxes are xyxy in [0, 1] of the input frame.
"""

import torch
from torch import Tensor

from lavis.models.blip2_models.region import PREFIX_TOKENS, contrast
from lavis.models.blip2_models.scores import token_scores

LEAST_COVERED = 1 / 3  # of a patch's width, and of its height


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


def views_of(patches: Tensor) -> tuple[Tensor, Tensor]:
    """(B, P) bool -> what two views see, (B, 2, P + 1) bool, CLS first; and which images have a patch, (B,) bool.

    The first view sees the whole image. The second sees those patches alone, and not CLS, which has seen everything. An
    image without such a patch is seen whole.
    """
    has_patch = patches.any(dim=1)
    inside = torch.nn.functional.pad(patches, (PREFIX_TOKENS, 0))  # (B, P) -> (B, P + 1)
    whole = torch.ones_like(inside)
    return torch.stack([whole, inside | ~has_patch[:, None]], dim=1), has_patch


def foreground_loss(queries: Tensor, tokens: Tensor, has_boxes: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Every composed query finds its target in the batch, all targets seen through their boxes alone.

    It is SPRC's own loss on other target tokens: no parameter is new, and the background cannot be learned by heart.
    Queries (B, E) and tokens (B, Q, E) are L2-normalised. `same` (B, B) marks places with the same target image, which
    are no negatives. A target without boxes, `has_boxes` (B,), is neither a positive nor a negative.
    """
    places = torch.arange(len(queries), device=queries.device)
    losses = contrast(token_scores(queries, tokens) * scale, places, same | ~has_boxes, "none")  # (B, B) -> (B,)
    # The mean over some rows without picking them: how many there are only the GPU knows, and the host would wait.
    return (losses * has_boxes).sum() / has_boxes.sum().clamp(min=1)
