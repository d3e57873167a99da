"""Region features and region-level contrastive losses, as pure functions.

Pooling is FG-CLIP's (https://arxiv.org/abs/2505.05071): RoIAlign (https://arxiv.org/abs/1703.06870) on the patch grid.
Shapes: B images, N regions of all of them, D width of the ViT, E width of the retrieval space, Q target tokens. An
*owner* (N,) says to which image of the batch a region belongs. Boxes are xyxy in [0, 1] of the input frame.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import roi_align

from lavis.common.devices import moved
from sprc.core.errors import InputError

PREFIX_TOKENS = 1  # CLS
# Objective -> its own parameters. The model creates them last, and freezes those that it does not use.
OBJECTIVES = {
    "pairs": ("region_proj", "region_logit_scale"),
    "tokens": ("region_proj", "region_logit_scale"),
    "query": ("region_proj", "region_logit_scale"),
    "compose": ("region_proj", "region_token_proj", "region_logit_scale"),
    "both": ("region_proj", "region_token_proj", "region_logit_scale"),
    "foreground": (),
}
# Objective of `tokens_loss` -> the tokens that regions look for.
TOKENS = {
    "tokens": ("target_tokens",),
    "compose": ("region_tokens",),
    "both": ("target_tokens", "region_tokens"),
}


def flatten_boxes(boxes: Sequence | None, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """B box lists, arrays or tensors (n_i, 4), or None for an image without -> boxes (N, 4), owners (N,).

    Raises InputError that names the image in the batch and the box.
    """
    boxes = [None] * batch if boxes is None else boxes
    if len(boxes) != batch:
        raise InputError(f"boxes for {len(boxes)} images were given with a batch of {batch}")
    parts = [_box_array(part, image) for image, part in enumerate(boxes)]
    flat, owners = np.concatenate(parts), np.repeat(np.arange(batch), list(map(len, parts)))
    _require_inside(flat, owners)
    return moved(torch.from_numpy(flat), device), moved(torch.from_numpy(owners), device)


def _box_array(boxes, image: int) -> np.ndarray:
    """(n, 4) float32 on the CPU."""
    try:
        boxes = boxes.detach().cpu().float().numpy() if isinstance(boxes, Tensor) else boxes
        found = np.asarray([] if boxes is None else boxes, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"image {image} of the batch: boxes are no numbers of shape (n, 4): {error}") from error
    found = found.reshape(-1, 4) if found.size == 0 else found
    if found.ndim != 2 or found.shape[1] != 4:
        raise InputError(f"image {image} of the batch: boxes of shape {found.shape}; give (n, 4), xyxy")
    return found


def _require_inside(boxes: np.ndarray, owners: np.ndarray) -> None:
    """Raise InputError that names the first box with a value outside [0, 1], or without area."""
    inside = ((boxes >= 0) & (boxes <= 1)).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if not inside.all():
        place = int(np.argmin(inside))
        image, number = owners[place], place - int(np.searchsorted(owners, owners[place]))
        raise InputError(
            f"image {image} of the batch, box {number} is {boxes[place].tolist()}: boxes have x1 < x2 and y1 < y2 in"
            " [0, 1] of the input frame, after padding, resize and crop"
        )


def grid_size(tokens: int, image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """(height, width) of the patch grid of an input frame of `image_size` = (height, width) pixels.

    Raises InputError if CLS and that grid are not `tokens` tokens.
    """
    height, width = (side // patch_size for side in image_size)
    if tokens != PREFIX_TOKENS + height * width:
        raise InputError(
            f"an input frame of {image_size[0]} x {image_size[1]} pixels (height x width) gives {PREFIX_TOKENS} +"
            f" {height} x {width} tokens, but the image embeddings have {tokens}: give the image_size that they are of"
        )
    return height, width


def pool_regions(image_embeds: Tensor, boxes: Tensor, owners: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (B, 1 + H W, D), boxes (N, 4), owners (N,) -> pooled features (N, D), float32.

    One `roi_align` for the whole batch, one bin a region, bilinear samples as many as its cells.
    """
    height, width = grid
    patches = image_embeds[:, PREFIX_TOKENS:].float()  # (B, 1 + H W, D) -> (B, H W, D)
    cells = patches.transpose(1, 2).unflatten(2, (height, width))  # -> (B, D, H, W)
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    rois = torch.stack([owners.to(boxes.dtype), x1 * width, y1 * height, x2 * width, y2 * height], dim=1)  # (N, 5)
    pooled = roi_align(cells, rois, output_size=(1, 1), spatial_scale=1.0, sampling_ratio=-1, aligned=True)
    return pooled.flatten(1)  # (N, D, 1, 1) -> (N, D)


def image_ids(names: Sequence[str] | None, device: torch.device) -> dict[str, Tensor]:
    """`target_ids` (B,) int64: a name has the same number in any batch and on any machine; {} without names."""
    if names is None:
        return {}
    ids = [int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big", signed=True) for name in names]
    return {"target_ids": moved(torch.tensor(ids), device)}


def same_image(ids: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """(B, B) bool: whether two places of the batch hold the same image; without ids each holds an image of its own."""
    ids = torch.arange(batch, device=device) if ids is None else ids
    return ids[:, None] == ids


def tokens_loss(regions: Tensor, owners: Tensor, tokens: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Every region of a target finds its own place in the batch through the tokens of each, as a query would.

    With target tokens this is `tokens`. It trains cross-attention and `vision_proj`, the gallery's embedding itself.
    With the fused queries of reference and sentence it is `compose`. The composed query must then hold every object of
    the target, and the loss trains the fusion path. `both` is the mean of the two: query and gallery meet in the same
    regions. Regions (N, E) and tokens (B, Q, E) are L2-normalised. `same` (B, B) marks places with the same target
    image, which are no negatives.
    """
    cosines = regions @ tokens.flatten(0, 1).T  # (N, E) x (E, B Q) -> (N, B Q)
    scores = cosines.view(len(regions), *tokens.shape[:2]).amax(dim=2)  # -> (N, B)
    return _contrast(scores * scale, owners, same[owners])


def query_loss(regions: Tensor, owners: Tensor, queries: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Every composed query finds the best region of its target among the best regions of the other targets.

    Trains the fusion path. Regions (N, E), queries (B, E), L2-normalised. A target without regions is neither a
    positive nor a negative, and its query is no anchor.
    """
    batch = len(queries)
    if len(regions) == 0:
        return (queries.sum() + regions.sum() + scale) * 0  # every parameter has a gradient, on every rank
    places = torch.arange(batch, device=owners.device)
    anchors = (owners[:, None] == places).any(dim=0)  # (N, B) -> (B,)
    logits = scale * queries @ regions.T  # (B, E) x (E, N) -> (B, N)
    best = logits.new_full((batch, batch), -torch.inf)  # stays so for a target without regions: no negative
    best = best.scatter_reduce(1, owners.expand(batch, -1), logits, "amax")  # (B, N) -> (B, B)
    best = best.masked_fill(~anchors[:, None], 0)  # keeps a row that does not count finite
    return contrast_of(anchors, best, places, same)


def pairs_loss(
    reference: Tensor, reference_owners: Tensor, target: Tensor, target_owners: Tensor, scale: Tensor, same: Tensor
) -> Tensor:
    """Every reference region finds its match in the target image among the regions of the other targets.

    Matches are one to one and have the greatest sum of cosines. The loss trains `region_proj` and `ln_vision` only, and
    has no gradient on the Q-Former. Features (N, E) and (M, E) are L2-normalised. The host does the matching, and waits
    for the device.
    """
    cosines = reference @ target.T  # (N, M)
    rows, columns = match_regions(cosines.detach(), reference_owners, target_owners)
    if len(rows) == 0:
        return cosines.sum() * 0
    owners = reference_owners[rows]
    return _contrast((cosines * scale)[rows], columns, same[owners][:, target_owners])


def match_regions(cosines: Tensor, rows_of: Tensor, columns_of: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column numbers of matched regions of the same pair: one to one, the greatest sum (Hungarian method).

    A cosine that is NaN counts as 0 here. The loss of such a match is NaN, and the training stops because of that.
    """
    values, row_owner, column_owner = cosines.cpu().nan_to_num(), rows_of.cpu(), columns_of.cpu()
    rows, columns = [], []
    for owner in row_owner.unique().tolist():
        mine, theirs = (row_owner == owner).nonzero()[:, 0], (column_owner == owner).nonzero()[:, 0]
        chosen = linear_sum_assignment(values[mine][:, theirs].numpy(), maximize=True)
        rows.append(mine[chosen[0]])
        columns.append(theirs[chosen[1]])
    matched = (torch.cat(part) if part else torch.zeros(0, dtype=torch.long) for part in (rows, columns))
    row_numbers, column_numbers = (part.to(cosines.device) for part in matched)
    return row_numbers, column_numbers


def _contrast(logits: Tensor, labels: Tensor, no_negative: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the rows; a column marked in `no_negative` counts only for rows of its own label."""
    if len(logits) == 0:
        return logits.sum() * 0
    own = F.one_hot(labels, logits.shape[1]).bool()
    return F.cross_entropy(logits.masked_fill(no_negative & ~own, -torch.inf), labels, reduction=reduction)


def contrast_of(anchors: Tensor, logits: Tensor, labels: Tensor, no_negative: Tensor) -> Tensor:
    """`_contrast` of the rows that are `anchors` (B,) bool; 0, with a gradient of 0, without any.

    It is the mean over some rows without picking them: how many there are only the GPU knows, and the host would wait.
    """
    return (_contrast(logits, labels, no_negative, "none") * anchors).sum() / anchors.sum().clamp(min=1)
