"""SHERL on an encoder-decoder: T5 with a side memory next to the frozen encoder's memory (SHERL, ECCV 2024).

Encoder: the frozen stack runs unchanged; its taps are merged into a second, *side* memory. Decoder: all blocks but the
last run without gradient on the frozen memory; the last one reads the merged feature and attends to the side memory. A
trained RMS norm follows each of the two merged streams.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlkit.adapters.sherl.tokens import SherlAdapter
from vlkit.adapters.stacks import Memory, Past
from vlkit.encoders.staged import check_layers, freeze, run_blocks, run_early
from vlkit.encoders.towers.hf_text import HfText
from vlkit.encoders.towers.t5 import DecoderInput, T5Decoder, attending_as, with_memory

Init = Literal["published", "identity"]


class SherlT5Encoder(nn.Module):
    """A frozen T5 encoder that also computes a side memory.

    Args:
        base: the encoder; the constructor freezes it.
        layers: depths to tap, 0 = embeddings, k = output of block k - 1; None = every depth. The deepest tap is the
            guide and goes through the gate.
        reduction: divisor of the width D inside the adapter.
        dropout: dropout on the side memory.
        init: ``"published"``: gate 0, linear weights from N(0, 0.01), norm 1. ``"identity"``: the side memory starts as
            the final norm of the deepest tap; with the last block tapped that is the frozen memory itself.
    """

    def __init__(
        self,
        base: HfText,
        layers: tuple[int, ...] | None = None,
        reduction: int = 4,
        dropout: float = 0.1,
        init: Init = "identity",
    ) -> None:
        super().__init__()
        self.base = freeze(base)
        self.adapter = _adapter(base.token_dim, layers, base.depth, 0, reduction, init)
        self.norm = _side_norm(base, init)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Any) -> Memory:
        """Encode what ``base.embed`` takes (ids [B, M] int64)."""
        reduced: list[Tensor] = []
        for k, stream in run_early(self.base, x, self.adapter.layers, self.base.depth):
            if k in self.adapter.layers:
                reduced.append(self.adapter.reduce(len(reduced), stream))
                deepest = stream
        side = self.norm(self.adapter.merge(reduced, deepest.hidden, deepest))
        with torch.no_grad():
            frozen = self.base.tokens(stream)
        return Memory(frozen, self.dropout(side), stream.mask)

    def read(self, ids: Tensor, visual: Tensor | None = None) -> Memory:
        """See :class:`vlkit.adapters.stacks.TextReader`; the side norm gives visual tokens the scale of the memory."""
        memory = self(ids)
        return memory if visual is None else memory.with_tokens(self.norm(visual))


class SherlT5Decoder(nn.Module):
    """A frozen T5 decoder whose last block reads the merged taps and attends to the side memory.

    Args:
        base: the decoder; the constructor freezes it.
        layers: depths to tap, at most ``base.depth - 1``; None = every depth up to that.
        reduction: divisor of the width D inside the adapter.
        init: see :class:`SherlT5Encoder`; ``"identity"`` starts at the base's own output on the side memory.
    """

    def __init__(
        self, base: T5Decoder, layers: tuple[int, ...] | None = None, reduction: int = 4, init: Init = "identity"
    ) -> None:
        super().__init__()
        self.base = freeze(base)
        self.adapter = _adapter(base.token_dim, layers, base.depth - 1, 1, reduction, init)
        self.norm = _side_norm(base, init)

    def forward(self, ids: Tensor, memory: Memory, past: Past | None = None) -> Tensor:
        """Decode.

        Args:
            ids: [B, L] int64, starts with the decoder's start token.
            memory: from :class:`SherlT5Encoder`.
            past: see :class:`vlkit.adapters.stacks.TextWriter`.

        Returns:
            [B, L, D], states after the side norm.
        """
        reduced: list[Tensor] = []
        stop = self.base.depth - self.adapter.late
        x = DecoderInput(ids, memory.frozen, memory.mask, None if past is None else past.base)
        for k, stream in run_early(self.base, x, self.adapter.layers, stop):
            if k in self.adapter.layers:
                reduced.append(self.adapter.reduce(len(reduced), stream))
        if memory.side_mask is None:
            stream = with_memory(stream, memory.side)
        else:
            # Embed again only to get an attention mask for the length of this memory, which the library builds.
            again = self.base.embed(DecoderInput(ids, memory.side, memory.side_mask))
            stream = stream.replace(extras={"arguments": attending_as(stream, again)})
        stream = stream.replace(hidden=self.adapter.merge(reduced, stream.hidden, stream))
        return self.norm(run_blocks(self.base, stream, stop, self.base.depth).hidden)

    def write(self, start: Tensor, memory: Memory, past: Past | None = None) -> Tensor:
        """See :class:`vlkit.adapters.stacks.TextWriter`."""
        return self.base.logits(self(start, memory, past))


class SherlT5(nn.Module):
    """Both stacks: ``model(x, ids)`` returns vocabulary logits; only the two side modules train."""

    def __init__(self, encoder: SherlT5Encoder, decoder: SherlT5Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x: Any, ids: Tensor) -> Tensor:
        """Logits [B, L, V] for encoder input ``x`` (ids [B, M] int64) and decoder ids [B, L] int64."""
        return self.decoder.write(ids, self.encoder(x))


def _adapter(
    width: int, layers: tuple[int, ...] | None, stop: int, late: int, reduction: int, init: Init
) -> SherlAdapter:
    layers = tuple(range(stop + 1)) if layers is None else layers
    check_layers(layers, stop)
    widths = (width,) * len(layers)
    return SherlAdapter(widths, width, width // reduction, layers, late, "gated", init=init, init_std=0.01)


def _side_norm(base: HfText, init: Init) -> nn.RMSNorm:
    norm = nn.RMSNorm(base.token_dim, eps=base.trunk.config.layer_norm_epsilon)
    if init == "identity":
        norm.load_state_dict(base.trunk.final_layer_norm.state_dict())
    return norm
