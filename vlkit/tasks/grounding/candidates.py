"""More than one answer from a grounding head with one query: boxes at further peaks of its heat map."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou, nms

SAME = 0.5
"""IoU from which two boxes count as the same object."""
LEAST = 0.01
"""Heat, as a share of the hottest cell's, below which a cell is ignored."""


def runners_up(heat: Tensor, cells: Tensor, best: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Boxes around further peaks of a heat map, one for each object that the cells distinguish.

    Each cell predicts its own box. Cells with overlapping boxes are merged (non-maximum suppression by heat). A
    runner-up is their mean, weighted like the best box: by heat times the overlap with the hottest of them.

    Args:
        heat: float32 [cells], logits.
        cells: float32 [cells, 4], the box of each cell: centre x, centre y, width, height.
        best: float32 [4] in the same form, the answer itself; boxes that overlap it are not runners-up.
        count: most runners-up to return; there may be fewer, or none.

    Returns:
        Boxes [n, 4] in the same form and their shares [n], hottest first. A share is the heat of a runner-up's hottest
        cell divided by the heat of the hottest cell of all (0..1), after a softmax over the image.
    """
    corners = box_convert(cells, "cxcywh", "xyxy")
    shares = (heat - heat.max()).exp()
    overlaps = box_iou(corners, corners)
    weights = heat.softmax(-1) * overlaps
    means = weights @ cells / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(cells.dtype).tiny)
    # The answer comes first, so that boxes like it are suppressed; then the means, so that none is a duplicate.
    boxes = torch.cat([best.unsqueeze(0), means])
    order = torch.cat([shares.new_tensor([2.0]), shares])
    kept = nms(box_convert(boxes, "cxcywh", "xyxy"), order, SAME)[1:] - 1
    kept = kept[shares[kept] >= LEAST][:count]
    return means[kept], shares[kept]
