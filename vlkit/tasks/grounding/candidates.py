"""More than one answer from a grounding head with one query: the other places that its heat map points at."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou, nms

SAME = 0.5
"""IoU from which two boxes are taken for the same thing."""
LEAST = 0.01
"""Heat, as a share of the hottest cell's, below which a cell is not pointed at."""


def runners_up(heat: Tensor, cells: Tensor, best: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Boxes around the other hot places of a heat map, one for each thing that the cells tell apart.

    Every cell has a box of its own. Cells whose boxes agree are taken together (non-maximum suppression by heat), and
    a runner-up is their mean weighted as the best box is: by heat, times the overlap with the hottest of them.

    Args:
        heat: float32 [cells], logits.
        cells: float32 [cells, 4], the box of each cell: centre x, centre y, width, height.
        best: float32 [4] in the same form, the answer itself; what overlaps it is no runner-up.
        count: runners-up, at most; there may be fewer, or none.

    Returns:
        Boxes [n, 4] in the same form and their shares [n], hottest first: how hot a runner-up's hottest cell is beside
        the hottest of all (0..1), after a softmax over the image.
    """
    corners = box_convert(cells, "cxcywh", "xyxy")
    shares = (heat - heat.max()).exp()
    overlaps = box_iou(corners, corners)
    weights = heat.softmax(-1) * overlaps
    means = weights @ cells / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(cells.dtype).tiny)
    # The answer goes first, so that nothing like it follows; then the means, so that no two of them are alike.
    boxes = torch.cat([best.unsqueeze(0), means])
    order = torch.cat([shares.new_tensor([2.0]), shares])
    kept = nms(box_convert(boxes, "cxcywh", "xyxy"), order, SAME)[1:] - 1
    kept = kept[shares[kept] >= LEAST][:count]
    return means[kept], shares[kept]
