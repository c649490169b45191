"""Answer heads: a classifier over an answer vocabulary, and a decoder that writes the answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from vlkit.adapters.stacks import Memory, Past
from vlkit.errors import UserError
from vlkit.tasks.fusion import Fusion
from vlkit.tasks.vqa.together import together


@dataclass
class ClassifyOptions:
    """Choose an answer from a vocabulary."""

    kind: Literal["classify"] = "classify"
    blind: bool = False
    """Leave the image out: the question-only control."""
    dropout: float = 0.1
    """Dropout rate before the last layer."""
    loss: Literal["bce", "softmax"] = "bce"
    """bce: independent score per answer (published); softmax: answers compete, which learns faster from little data."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise UserError(f"--head.dropout {self.dropout}: must be at least 0 and less than 1")


@dataclass
class GenerateOptions:
    """Write the answer with T5's decoder."""

    kind: Literal["generate"] = "generate"
    blind: bool = False
    """Leave the image out: the question-only control."""
    queries: int = 8
    """Number of fused states that the decoder attends to in addition to the question (not LST, which reads cells)."""
    cells: int = 6
    """Cells per side that an image is pooled to (LST only)."""
    beams: int = 1
    """Beam size for writing an answer; 1 = greedy."""
    max_tokens: int = 8
    """Longest answer in tokens."""
    prompt: str = ""
    """Words before every question. VL-T5 and LST write vqa:, gpa: (for GQA, so spelt) and nlvr:, because a T5 knows its
    tasks by their first words."""

    def __post_init__(self) -> None:
        for name in ("queries", "cells", "beams", "max_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"--head.{name} {getattr(self, name)}: must be at least 1")
        self.prompt = self.prompt.strip()


VQA_HEADS = {"classify": ClassifyOptions, "generate": GenerateOptions}
"""Name for ``--head.kind`` -> its options."""


def prompt_of(head: ClassifyOptions | GenerateOptions) -> str:
    """The words before every question; a classifier reads the question alone."""
    return head.prompt if isinstance(head, GenerateOptions) else ""


class AnswerClassifier(nn.Module):
    """Adapted towers, fusion and a two-layer classifier on the fused query.

    The classifier also reads the product of both pooled embeddings (low-rank bilinear pooling, Kim et al., ICLR 2017):
    global image content is learned from it long before attention finds the right cells.

    Args:
        image: adapted vision tower; None = blind.
        text: adapted text tower.
        fusion: fusion with one query.
        answers: A, size of the vocabulary.
        dropout: dropout rate before the last layer.
        images: I, images that a question is about.
    """

    def __init__(
        self, image: Any | None, text: Any, fusion: Fusion, answers: int, dropout: float = 0.0, images: int = 1
    ) -> None:
        super().__init__()
        self.image, self.text, self.fusion, self.images = image, text, fusion, images
        width = fusion.width
        self.whole_image = None if image is None else _projection(images * image.base.out_dim, width)
        self.whole_text = _projection(text.base.out_dim, width)
        self.classifier = nn.Sequential(
            nn.Linear((2 if image is None else 3) * width, 2 * width),
            nn.GELU(),
            nn.LayerNorm(2 * width, eps=1e-12),
            nn.Dropout(dropout),
            nn.Linear(2 * width, answers),
        )
        # Each answer starts at the odds of one among all; otherwise thousands of easy negatives would dominate the
        # loss.
        nn.init.constant_(cast(nn.Linear, self.classifier[-1]).bias, -math.log(max(1, answers)))

    def forward(self, pixels: Tensor, ids: Tensor, owner: Tensor) -> Tensor:
        """Logits [B, A] float32 of images [P * I, 3, H, W], questions [B, L] int64 and the image (or pair) of each
        question [B] int64.
        """
        image = None if self.image is None else together(self.image(pixels), self.images)
        text = self.text(ids)
        with self.fusion.compressed():
            whole = self.whole_text(text.pooled)
            found = [self.fusion(image, text, owner)[-1][:, 0], whole]
            if image is not None and self.whole_image is not None:
                found.append(whole * self.whole_image(image.pooled)[owner])
            return self.classifier(torch.cat(found, dim=-1)).float()


def _projection(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width_in), nn.Linear(width_in, width))


class Words(NamedTuple):
    """Text tokens as :class:`Fusion` reads them: tokens [B, L, D], mask [B, L] bool or None."""

    tokens: Tensor
    mask: Tensor | None


class AnswerGenerator(nn.Module):
    """Adapted towers and fusion, whose queries join the memory of a T5 decoder that writes the answer.

    With SHERL (flavour T5) the encoder's side memory, extended by the fused states, feeds the last decoder block; the
    blocks before it run without gradient on the frozen memory of the question. (Image tokens before the question would
    need a gradient through the whole frozen encoder.) With methods that tune the base itself, all decoder blocks
    attend to the question and the fused states.

    Args:
        image: adapted vision tower; None = blind.
        encoder: the adapted encoder, a :class:`vlkit.adapters.stacks.TextReader` whose memory has the base's width.
        decoder: the adapted decoder, a :class:`vlkit.adapters.stacks.TextWriter`.
        fusion: fusion whose queries become memory.
        images: I, images that a question is about.
    """

    text: Any
    decoder: Any

    def __init__(
        self, image: nn.Module | None, encoder: nn.Module, decoder: Any, fusion: Fusion, images: int = 1
    ) -> None:
        super().__init__()
        self.images = images
        self.image, self.text, self.decoder, self.fusion = image, encoder, decoder, fusion
        width = decoder.base.token_dim
        self.to_memory = nn.Linear(fusion.width, width)
        # The decoder expects a memory normalised by an RMS norm.
        self.memory_norm = nn.RMSNorm(width, eps=1e-6)

    def memory(self, pixels: Tensor | None, ids: Tensor, owner: Tensor) -> Memory:
        """The decoder's memory: ``side`` is [B, L + Q, D], the question's tokens and the fused states."""
        text = self.text.read(ids)
        image = None if self.image is None else together(self.image(pixels), self.images)
        with self.fusion.compressed():
            fused = self.fusion(image, Words(text.side, text.mask), owner)[-1]
            return text.with_tokens(self.memory_norm(self.to_memory(fused)))

    def decode(self, memory: Memory, start: Tensor, past: Past | None = None) -> Tensor:
        """Logits [B, T, V] float32; see :class:`vlkit.tasks.generation.Decodes`."""
        return self.decoder.write(start, memory, past).float()

    def forward(self, pixels: Tensor, ids: Tensor, owner: Tensor, start: Tensor) -> Tensor:
        """Logits [B, T, V] of the answers' tokens under teacher forcing; see :meth:`memory` and :meth:`decode`."""
        return self.decode(self.memory(pixels, ids, owner), start)
