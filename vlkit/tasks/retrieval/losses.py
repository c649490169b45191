"""The loss of image-text retrieval: a choice among the contrastive losses that tasks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from vlkit.tasks.contrastive import Pairs, info_nce, mean_over_blocks, siglip, triplet


@dataclass
class Loss:
    """Options of the retrieval loss."""

    kind: Literal["infonce", "siglip", "triplet"] = "infonce"
    """infonce: softmax (CLIP); siglip: pairwise sigmoid; triplet: hinge with hardest negatives (VSE-infinity)."""
    margin: float = 0.2
    """Margin of the triplet loss; the first epoch uses all negatives, the second ramps up the hardest-negative loss."""
    chunk: int = 0
    """Pairs encoded and compared at once, with the gradient of the whole batch (cached contrastive loss); 0 = all."""


def contrastive_loss(
    pairs: Pairs, scale: Tensor, bias: Tensor, options: Loss, epoch: float, fabric: Any = None
) -> Tensor:
    """The loss, a scalar; with ``options.chunk``, rows are compared in blocks of that size as well.

    Args:
        pairs: embeddings of the batch.
        scale, bias: scalar factor on the cosine, and bias.
        options: which loss.
        epoch: epochs done so far, as a fraction.
        fabric: as for :func:`vlkit.tasks.contrastive.gather_pairs`.
    """

    def loss(pairs: Pairs, scale: Tensor, bias: Tensor) -> Tensor:
        if options.kind == "siglip":
            return siglip(pairs, scale, bias)
        if options.kind == "triplet":
            # As published for VSE-infinity: all negatives first, then the hardest with a ramp over one epoch.
            return triplet(pairs, options.margin, hardest=epoch >= 1) * (epoch - 1 if 1 <= epoch < 2 else 1)
        return info_nce(pairs, scale)

    return mean_over_blocks(loss, pairs, scale, bias, options.chunk, fabric)
