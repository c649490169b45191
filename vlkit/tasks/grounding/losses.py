"""Losses of grounding: matching of predicted to annotated boxes, L1, generalised IoU, heat map and score.

Annotated boxes come as a padded batch with a mask. Only the matching of several queries (scipy, on the host) waits for
the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert

from vlkit.errors import UserError
from vlkit.tasks.grounding.head import BoxPrediction
from vlkit.tasks.grounding.overlap import pairwise_giou, pairwise_iou


@dataclass
class BoxLoss:
    """Weights of the loss terms (MDETR: 5 x L1 + 2 x GIoU)."""

    l1: float = 5.0
    """Weight of the L1 distance of centre and sides, as shares of the image."""
    giou: float = 2.0
    """Weight of 1 - generalised IoU."""
    heat: float = 1.0
    """Weight of the cross-entropy of the heat map with the cells that the box covers."""
    cells: float = 1.0
    """Weight of L1 and GIoU, in the same proportion, of the boxes that the covered cells predict."""
    score: float = 1.0
    """Weight of the cross-entropy of a box's score with its IoU."""
    auxiliary: float = 1.0
    """Weight of the same losses after every fusion layer except the last."""

    def __post_init__(self) -> None:
        for name in ("l1", "giou", "heat", "cells", "score", "auxiliary"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"--loss.{name} {getattr(self, name)}: must be 0 or more, and finite")


def grounding_loss(
    predictions: Sequence[BoxPrediction], target: Tensor, valid: Tensor, weights: BoxLoss, count: Tensor | None = None
) -> dict[str, Tensor]:
    """Losses of a batch, means over its annotated boxes.

    Args:
        predictions: one for each fusion layer, the answer last.
        target: [B, G, 4] float, x1, y1, x2, y2 as shares of the model's input.
        valid: [B, G] bool, True = a real box, not padding; at least one in the batch.
        weights: see :class:`BoxLoss`.
        count: scalar divisor of sums over boxes; None = their number. With several processes, pass the mean of their
            numbers of boxes, so that the mean of their gradients is that of the whole batch.

    Returns:
        Scalars: ``loss``, the weighted sum over layers, and its unweighted parts from the last layer.
    """
    count = (valid.sum() if count is None else count).clamp_min(1)
    *others, last = [_layer_losses(prediction, target, valid, weights, count) for prediction in predictions]
    last["cells"] = cell_loss(predictions[-1], target, valid, weights, count)
    loss = _weighted(last, weights)
    for parts in others:
        loss = loss + weights.auxiliary * _weighted(parts, weights)
    return {"loss": loss, **{name: value.detach() for name, value in last.items()}}


def _weighted(parts: dict[str, Tensor], weights: BoxLoss) -> Tensor:
    return torch.stack([getattr(weights, name) * value for name, value in parts.items()]).sum()


def _layer_losses(
    found: BoxPrediction, target: Tensor, valid: Tensor, weights: BoxLoss, count: Tensor
) -> dict[str, Tensor]:
    query, matched = match_queries(found, target, valid, weights)
    share = matched / count  # [B, G]; a mean over boxes as a sum
    at = query.unsqueeze(-1)
    boxes = found.boxes.gather(1, at.expand(-1, -1, 4))  # [B, G, 4], the prediction of each annotated box
    heat = found.heat.gather(1, at.expand(-1, -1, found.heat.shape[-1]))
    safe = _without_padding(target, valid)
    corners = box_convert(boxes, "cxcywh", "xyxy")
    giou = 1 - pairwise_giou(corners, safe)
    l1 = (boxes - box_convert(safe, "xyxy", "cxcywh")).abs().sum(-1)
    cover = -(cell_shares(safe, found.grid) * heat.log_softmax(-1)).sum(-1)
    quality = pairwise_iou(corners.detach(), safe) * matched
    wanted = torch.zeros_like(found.scores).scatter_add(1, query, quality)
    score = F.binary_cross_entropy_with_logits(found.scores, wanted, reduction="none").mean(1)
    return {
        "l1": (l1 * share).sum(),
        "giou": (giou * share).sum(),
        "heat": (cover * share).sum(),
        "score": score.sum() / count,
    }


def cell_loss(found: BoxPrediction, target: Tensor, valid: Tensor, weights: BoxLoss, count: Tensor) -> Tensor:
    """``l1`` x L1 + ``giou`` x (1 - GIoU) of the cells' own boxes, weighted by how much of the annotated box a cell
    covers, summed over annotated boxes and divided by ``count``. A scalar.
    """
    safe = _without_padding(target, valid)
    share = cell_shares(safe, found.grid) * (valid / count).unsqueeze(-1)  # [B, G, cells]
    wanted = safe.unsqueeze(2).expand(-1, -1, found.cells.shape[1], -1)
    boxes = found.cells.unsqueeze(1).expand_as(wanted)
    giou = 1 - pairwise_giou(box_convert(boxes, "cxcywh", "xyxy"), wanted)
    l1 = (boxes - box_convert(wanted, "xyxy", "cxcywh")).abs().sum(-1)
    return ((weights.l1 * l1 + weights.giou * giou) * share).sum()


def _without_padding(target: Tensor, valid: Tensor) -> Tensor:
    """``target`` with the whole image for padding: the gradient of an empty box's GIoU is NaN."""
    return torch.where(valid.unsqueeze(-1), target, target.new_tensor([0.0, 0.0, 1.0, 1.0]))


@torch.no_grad()
def match_queries(found: BoxPrediction, target: Tensor, valid: Tensor, weights: BoxLoss) -> tuple[Tensor, Tensor]:
    """Assign one query to each annotated box at the least total cost (Hungarian matching, Carion et al., ECCV 2020).

    The cost of a pair is ``l1`` x L1 - ``giou`` x GIoU - ``score`` x the score as a probability.

    Args:
        found: predictions, Q queries.
        target, valid: as in :func:`grounding_loss`.

    Returns:
        The query of each box, int64 [B, G] (0 where there is none), and float [B, G]: 1 if the box has a query, 0 if it
        is padding or one of more boxes than queries.
    """
    count = found.boxes.shape[1]
    if count == 1:
        # With a single query there is no choice: the first box gets it.
        first = valid & (valid.cumsum(1) == 1)
        return torch.zeros_like(valid, dtype=torch.int64), first.to(found.boxes.dtype)
    from scipy.optimize import linear_sum_assignment  # half a second that only training with several queries needs

    corners = box_convert(found.boxes, "cxcywh", "xyxy")
    distance = torch.cdist(found.boxes, box_convert(target, "xyxy", "cxcywh"), p=1)  # [B, Q, G]
    giou = pairwise_giou(corners.unsqueeze(2), target.unsqueeze(1))
    cost = weights.l1 * distance - weights.giou * giou - weights.score * found.scores.sigmoid().unsqueeze(2)
    query = torch.zeros(valid.shape, dtype=torch.int64)
    matched = torch.zeros(valid.shape, dtype=found.boxes.dtype)
    for row, (costs, real) in enumerate(zip(cost.cpu(), valid.cpu(), strict=True)):
        columns = real.nonzero().squeeze(1)
        queries, chosen = linear_sum_assignment(costs[:, columns].nan_to_num(1e6).numpy())
        query[row, columns[chosen]] = torch.as_tensor(queries)
        matched[row, columns[chosen]] = 1.0
    return query.to(target.device), matched.to(target.device)


def cell_shares(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Distribution of a box's area over the cells of a grid.

    Args:
        boxes: [..., 4] x1, y1, x2, y2 in 0..1, not empty.
        grid: rows and columns.

    Returns:
        [..., rows * columns], sums to 1 (zeros for a box entirely outside the image).
    """
    x1, y1, x2, y2 = boxes.unsqueeze(-1).unbind(-2)
    along = []
    for low, high, count in ((y1, y2, grid[0]), (x1, x2, grid[1])):
        border = torch.arange(count + 1, device=boxes.device, dtype=boxes.dtype) / count
        along.append((torch.minimum(high, border[1:]) - torch.maximum(low, border[:-1])).clamp_min(0))
    area = (along[0].unsqueeze(-1) * along[1].unsqueeze(-2)).flatten(-2)
    return area / area.sum(-1, keepdim=True).clamp_min(1e-12)
