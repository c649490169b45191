"""A training step of visual question answering on a synthetic batch, measured or predicted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlkit.encoders.bases import ClipBase
from vlkit.encoders.text_side import TextSide
from vlkit.tasks.fusion import FusionOptions
from vlkit.tasks.fusion_bench import FusionBench
from vlkit.tasks.generation import shift_right, token_loss
from vlkit.tasks.vqa.heads import ClassifyOptions
from vlkit.tasks.vqa.losses import answer_bce, answer_softmax
from vlkit.tasks.vqa.model import HeadOptions, build_model


class VqaBench(FusionBench):
    """Training steps of any method with one head and fusion; see the base class.

    Args:
        base: name of the contrastive base.
        predicts: compute nothing: tensors have shapes but no values.
        head, fusion: their options.
        answers: size of the vocabulary.
        images: images that a question is about.
        options: further arguments of the base class.
    """

    def __init__(
        self,
        base: str,
        predicts: bool,
        head: HeadOptions,
        fusion: FusionOptions,
        answers: int,
        images: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(base, predicts, **options)
        self.head, self.fusion, self.answers, self.images = head, fusion, answers, images

    def build(self, base: ClipBase, text: TextSide, options: Any) -> nn.Module:
        """Both towers with the method applied, fusion and answer head."""
        return build_model(base, text, options, self.head, self.fusion, self.answers, self.images)

    def loss(self, model: nn.Module, pixels: Tensor, ids: Tensor, owner: Tensor) -> Tensor:
        """The head's loss; a written answer is as long as allowed."""
        pixels = pixels.repeat_interleave(self.images, dim=0)
        if isinstance(self.head, ClassifyOptions):
            loss = answer_bce if self.head.loss == "bce" else answer_softmax
            return loss(model(pixels, ids, owner), torch.ones(len(ids), self.answers, device=ids.device))
        # build_model has refused a text base without a decoder.
        assert self.text_base is not None and self.text_base.start_id is not None
        targets = torch.full((len(ids), self.head.max_tokens), 3, device=ids.device)
        start = shift_right(targets, self.text_base.start_id)
        return token_loss(model(pixels, ids, owner, start), targets, self.text_base.tokenizer.pad_token_id)
