"""The five losses of R2-Tuning (arXiv:2404.00801): class, boundary, saliency, and two contrastive calibrations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkit.errors import UserError
from vlkit.tasks.moment_retrieval.head import Predictions
from vlkit.tasks.moment_retrieval.targets import point_targets

TEMPERATURE = 0.07
FOCUS = 2.0


@dataclass
class MomentLoss:
    """Weights of the terms."""

    classes: float = 1.0
    """Focal loss of the class of each point (highlight sets: cross-entropy against the saliency of each clip)."""
    boundary: float = 0.2
    """L1 loss of the offsets of positive points."""
    saliency: float = 0.1
    """Contrastive loss of a positive clip against less salient clips, and against other videos (published: 0.01 on
    Charades-STA, 0.05 on TACoS)."""
    video: float = 0.1
    """Contrastive loss between clips and queries of the batch, in every step of the refinement."""
    layer: float = 0.1
    """Contrastive loss between the steps of the refinement, in every example."""

    def __post_init__(self) -> None:
        for name in ("classes", "boundary", "saliency", "video", "layer"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"--loss.{name} {getattr(self, name)}: must be 0 or more, and finite")


def moment_losses(
    predicted: Predictions,
    windows: Tensor | None,
    saliency: Tensor,
    positive: Tensor,
    options: MomentLoss,
    videos: Tensor | None = None,
) -> dict[str, Tensor]:
    """The weighted terms and their sum ``loss``, scalars.

    Queries about one moment of one video are no negatives of each other.

    Args:
        predicted: what the model says.
        windows: [B, W, 2] in clips, padded with infinity; None for highlight sets, whose classes are compared with the
            saliency, and whose saliency term has no part across videos.
        saliency: [B, T], 0..1.
        positive: int64 [B], a clip with high saliency; -1 = the video has none, and then only the first two terms
            count it.
        options: the weights.
        videos: int64 [B], the video of each query; None = all different.
    """
    has = positive >= 0
    terms = {}
    if windows is None or predicted.offsets is None:
        terms["classes"] = options.classes * soft_class_loss(predicted.logits, saliency, predicted.mask)
    else:
        target = point_targets(predicted.points, windows.to(predicted.points))
        terms["classes"] = options.classes * class_loss(predicted.logits, target.classes, predicted.valid)
        terms["boundary"] = options.boundary * boundary_loss(predicted.offsets, target.offsets, target.classes)
    rows = torch.arange(len(positive), device=positive.device)[has]
    chosen = positive[has]
    scores = saliency_logits(predicted.frames[rows], predicted.pooled[rows], predicted.mask[rows])
    same = None if windows is None or videos is None else same_moment(windows[rows], videos[rows])
    terms["saliency"] = options.saliency * saliency_loss(
        scores, saliency[rows], chosen, columns=windows is not None, same=same
    )
    clips, queries = predicted.clips[:, rows, chosen], predicted.queries[:, rows]  # [k, b, C]
    terms["video"] = options.video * info_nce(clips, queries, same)
    terms["layer"] = options.layer * info_nce(clips.transpose(0, 1), queries.transpose(0, 1))
    return {"loss": torch.stack(list(terms.values())).sum(), **terms}


def class_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Focal loss (gamma 2, no alpha), the mean over valid points: [B, N], bool [B, N], bool [B, N] -> scalar."""
    label = target.to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
    probability = torch.where(target, logits.sigmoid(), (-logits).sigmoid())
    return (entropy * (1 - probability) ** FOCUS * valid).sum() / valid.sum().clamp_min(1)


def soft_class_loss(logits: Tensor, saliency: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy against the saliency, the mean over real clips: [B, T], [B, T], bool [B, T] -> scalar."""
    loss = F.binary_cross_entropy_with_logits(logits[:, : mask.shape[1]], saliency.to(logits.dtype), reduction="none")
    return (loss * mask).sum() / mask.sum().clamp_min(1)


def boundary_loss(offsets: Tensor, target: Tensor, positive: Tensor) -> Tensor:
    """Mean absolute error of both offsets of positive points; 0 if a batch has none. [B, N, 2] twice, bool [B, N]."""
    error = (offsets - target.to(offsets)).abs().sum(2)
    return torch.where(positive, error, 0.0).sum() / (2 * positive.sum().clamp_min(1))


def saliency_logits(frames: Tensor, pooled: Tensor, mask: Tensor) -> Tensor:
    """Cosine of clips [B, T, C] and query [B, C] over the temperature, -inf at padded clips: [B, T]."""
    cosine = F.cosine_similarity(frames, pooled.unsqueeze(1), dim=-1)
    return (cosine / TEMPERATURE).masked_fill(~mask, -torch.inf)


def same_moment(windows: Tensor, videos: Tensor) -> Tensor:
    """Whether two queries are about one video and their windows overlap, bool [B, B]; False on the diagonal.

    Args:
        windows: [B, W, 2], padded with infinity.
        videos: int64 [B].
    """
    start, end = windows.unbind(2)
    before = start[:, None, :, None] < end[None, :, None, :]  # [B, B, W, W]: the first begins before the second ends
    overlap = (before & before.permute(1, 0, 3, 2)).flatten(2).any(2)
    own = torch.eye(len(videos), dtype=torch.bool, device=videos.device)
    return overlap & (videos.unsqueeze(1) == videos) & ~own


def saliency_loss(
    scores: Tensor, saliency: Tensor, positive: Tensor, columns: bool = True, same: Tensor | None = None
) -> Tensor:
    """Contrast the positive clip with clips of lower saliency, and with the same clip of the other videos.

    Args:
        scores: [b, T] of :func:`saliency_logits`, each video with its own query.
        saliency: [b, T]; clips above the positive one are left out of the contrast.
        positive: int64 [b].
        columns: add the term across videos.
        same: bool [b, b], pairs that are left out of the term across videos.

    Returns:
        Scalar; 0 without any video.
    """
    if not len(positive):
        return scores.sum() * 0
    limit = saliency.gather(1, positive.unsqueeze(1))
    scores = scores.masked_fill(saliency > limit, -torch.inf)
    loss = F.cross_entropy(scores, positive)
    if columns:
        # The columns are selected first: others may hold -inf alone, and their softmax would have a gradient of NaN.
        own = torch.arange(len(positive), device=positive.device)
        loss = loss + F.cross_entropy(without(scores[:, positive].T, same), own)
    return loss


def info_nce(left: Tensor, right: Tensor, same: Tensor | None = None) -> Tensor:
    """Symmetric contrastive loss within each of G groups: [G, n, C] twice -> scalar; 0 for empty groups.

    ``same``: bool [n, n], pairs that are left out, symmetric.
    """
    if not left.shape[0] * left.shape[1]:
        return (left.sum() + right.sum()) * 0
    logits = without(F.normalize(left, dim=-1) @ F.normalize(right, dim=-1).transpose(1, 2) / TEMPERATURE, same)
    own = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return (F.cross_entropy(logits.transpose(1, 2), own) + F.cross_entropy(logits, own)) / 2


def without(logits: Tensor, pairs: Tensor | None) -> Tensor:
    """Logits [..., n, n] with -inf at ``pairs`` (bool [n, n])."""
    return logits if pairs is None else logits.masked_fill(pairs, -torch.inf)
