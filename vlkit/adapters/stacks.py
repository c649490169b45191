"""Both stacks of an encoder-decoder, adapted by any method: one reads a text, the other writes one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from vlkit.encoders.staged import StagedEncoder
from vlkit.encoders.towers.t5 import T5Decoder


@dataclass(frozen=True)
class Memory:
    """The encoder memories that a decoder attends to.

    Attributes:
        frozen: [B, M, D], the encoder's own output for the decoder's early route; no gradient if the encoder is frozen.
        side: [B, S, d], the adapted memory for the decoder's late route or side network. Rows beyond M, if any, are
            visual tokens or other tokens added by a head; they come last.
        mask: [B, M] bool, True = real token; None = all real.
        side_mask: [B, S] bool, mask of a side memory with more rows; None = ``mask``, and further rows are real.
    """

    frozen: Tensor
    side: Tensor
    mask: Tensor | None
    side_mask: Tensor | None = None

    def with_tokens(self, tokens: Tensor) -> Memory:
        """This memory with further rows [B, Q, d] in ``side``; all of them are real."""
        mask = self.mask
        if mask is None:
            mask = torch.ones(self.side.shape[:2], dtype=torch.bool, device=self.side.device)
        side = torch.cat([self.side, tokens.to(self.side.dtype)], dim=1)
        return replace(self, side=side, mask=mask, side_mask=F.pad(mask, (0, tokens.shape[1]), value=True))

    def rows(self, index: Tensor) -> Memory:
        """The memory of examples ``index`` [N] int64, which may repeat (beam search)."""
        mask, side_mask = (None if part is None else part[index] for part in (self.mask, self.side_mask))
        return Memory(self.frozen[index], self.side[index], mask, side_mask)


class Past:
    """Keys and values of the tokens written so far, so that the next token runs alone.

    Attributes:
        base: those of the frozen or tuned decoder's blocks, a cache of transformers.
        side: those of a side decoder's blocks.
    """

    def __init__(self) -> None:
        self.base, self.side = new_cache(), new_cache()

    def reorder(self, index: Tensor) -> None:
        """Continue with the texts ``index`` [B] int64, which may repeat (beam search)."""
        for cache in (self.base, self.side):
            cache.reorder_cache(index)


def new_cache() -> Any:
    """An empty cache for the self-attention and cross-attention of a decoder's blocks."""
    return EncoderDecoderCache(DynamicCache(), DynamicCache())


class TextReader(Protocol):
    """An adapted encoder of an encoder-decoder."""

    base: StagedEncoder

    def read(self, ids: Tensor, visual: Tensor | None = None) -> Memory:
        """Read texts [B, M] int64 and visual tokens [B, V, D]; the memory's side holds both, visual tokens last."""
        ...


class TextWriter(Protocol):
    """An adapted decoder of an encoder-decoder."""

    base: T5Decoder

    def write(self, start: Tensor, memory: Memory, past: Past | None = None) -> Tensor:
        """Vocabulary logits [B, T, V] of the token after each of ``start`` [B, T] int64 (start token first).

        With ``past``, ``start`` holds only the tokens after those that earlier calls with the same ``past`` were given.
        """
        ...
