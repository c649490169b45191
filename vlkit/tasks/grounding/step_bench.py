"""A training step of grounding on a synthetic batch, measured or predicted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlkit.encoders.bases import ClipBase
from vlkit.encoders.text_side import TextSide
from vlkit.tasks.fusion import FusionOptions
from vlkit.tasks.fusion_bench import FusionBench
from vlkit.tasks.grounding.head import GroundingOptions
from vlkit.tasks.grounding.losses import BoxLoss, grounding_loss
from vlkit.tasks.grounding.model import build_model


class GroundingBench(FusionBench):
    """Training steps of any method with one fusion and box head; see the base class.

    Args:
        base: name of the contrastive base.
        predicts: compute nothing: tensors have shapes but no values.
        fusion, head: their options.
        options: further arguments of the base class.
    """

    def __init__(
        self, base: str, predicts: bool, fusion: FusionOptions, head: GroundingOptions, **options: Any
    ) -> None:
        super().__init__(base, predicts, **options)
        self.fusion, self.head = fusion, head

    def build(self, base: ClipBase, text: TextSide, options: Any) -> nn.Module:
        """Both towers with the method applied, neck, fusion and box head."""
        return build_model(base, text, options, self.fusion, self.head)

    def loss(self, model: nn.Module, pixels: Tensor, ids: Tensor, owner: Tensor) -> Tensor:
        """The loss of one box per text."""
        found = model(pixels, ids, owner)
        if self.predicts:  # the assignment of several queries reads values, which these tensors do not have
            found = [f._replace(boxes=f.boxes[:, :1], scores=f.scores[:, :1], heat=f.heat[:, :1]) for f in found]
        target = torch.tensor([0.25, 0.25, 0.75, 0.75], device=ids.device).expand(len(ids), 1, 4)
        valid = torch.ones(len(ids), 1, dtype=torch.bool, device=ids.device)
        return grounding_loss(found, target, valid, BoxLoss())["loss"]
