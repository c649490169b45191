"""The loss of image-text retrieval: a choice among the contrastive losses that tasks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vlkit.tasks.contrastive import Pairs, info_nce, siglip, triplet


@dataclass
class Loss:
    """What is minimised."""

    kind: Literal["infonce", "siglip", "triplet"] = "infonce"
    """Softmax contrastive (CLIP), sigmoid (SigLIP), or hinge with hardest negatives (VSE-infinity)."""
    margin: float = 0.2
    """Margin of the triplet loss; its first epoch sums over all negatives, the second is ramped up."""
    chunk: int = 0
    """Pairs encoded at once; the gradient stays that of the whole batch (cached contrastive loss); 0 = all."""


def contrastive_loss(pairs: Pairs, scale: Tensor, bias: Tensor, options: Loss, epoch: float) -> Tensor:
    """A scalar.

    Args:
        pairs: embeddings of the batch.
        scale, bias: scalars, on the cosine.
        options: which loss.
        epoch: epochs done so far, a fraction.
    """
    if options.kind == "siglip":
        return siglip(pairs, scale, bias)
    if options.kind == "triplet":
        # As published for VSE-infinity: all negatives first, then the hardest with a ramp over one epoch.
        return triplet(pairs, options.margin, hardest=epoch >= 1) * (epoch - 1 if 1 <= epoch < 2 else 1)
    return info_nce(pairs, scale)
