"""LST on an encoder-decoder: T5 with a side encoder and a side decoder that attends to the side encoder (NeurIPS 2022).

Both frozen stacks run without gradient from end to end, the decoder on the frozen memory. With visual features, the
frozen encoder reads only the text and the side encoder reads both (VL-T5): the position bias of a pair with a visual
token is 0, and the frozen encoder adds nothing to visual rows.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.lst.ladder import Gate, make_ladder, start_
from vlkit.adapters.lst.pruning import Importance, prune_
from vlkit.adapters.stacks import Memory, Past
from vlkit.encoders.staged import Stream, freeze, run_early
from vlkit.encoders.towers.hf_text import HfText
from vlkit.encoders.towers.t5 import DecoderInput, T5Decoder

Init = Literal["published", "identity"]


class LstT5Encoder(nn.Module):
    """A frozen T5 encoder with a side encoder.

    Args:
        base: the encoder; the constructor freezes it.
        keep: blocks that get a side block; None = all.
        reduction: divisor of every width; the number of heads stays.
        gate, after, span: see :class:`vlkit.adapters.lst.ladder.Ladder`.
    """

    def __init__(
        self,
        base: HfText,
        keep: tuple[int, ...] | None = None,
        reduction: int = 8,
        gate: Gate = "learned",
        after: bool = False,
        span: int = 1,
    ) -> None:
        super().__init__()
        self.base = freeze(base)
        self.ladder = make_ladder(base, keep, reduction, gate, after, span)

    def forward(self, x: Any, visual: Tensor | None = None) -> Memory:
        """Encode an input of ``base.embed`` (ids [B, M] int64), and optional visual features [B, V, D]."""
        reduced: list[Tensor] = []
        for k, stream in run_early(self.base, x, self.ladder.layers, self.base.depth):
            if k in self.ladder.layers:
                hidden = stream.hidden if visual is None or k else torch.cat([stream.hidden, visual], dim=1)
                reduced.append(self.ladder.reduce(len(reduced), hidden))
        arguments = self.ladder.blocks.start(stream.extras)
        if visual is not None:
            arguments |= self._beside(visual, stream)
        side = self.ladder.climb(reduced, arguments)
        with torch.no_grad():
            frozen = self.base.tokens(stream)
        return Memory(frozen, side, stream.mask)

    def read(self, ids: Tensor, visual: Tensor | None = None) -> Memory:
        """See :class:`vlkit.adapters.stacks.TextReader`; only the side encoder reads visual tokens."""
        return self(ids, visual)

    def _beside(self, visual: Tensor, stream: Stream) -> dict[str, Any]:
        """Position bias and mask for text tokens followed by visual tokens."""
        block: Any = next(iter(self.ladder.blocks.values()))
        first = block.layer[0].SelfAttention
        length, more = stream.hidden.shape[1], visual.shape[1]
        bias = F.pad(first.compute_bias(length, length), (0, more, 0, more))
        if stream.mask is not None:
            padding = F.pad(~stream.mask, (0, more))[:, None, None]
            bias = bias.masked_fill(padding, torch.finfo(bias.dtype).min)
        return {"position_bias": bias.expand(len(visual), -1, -1, -1), "attention_mask": None}


class LstT5Decoder(nn.Module):
    """A frozen T5 decoder with a side decoder that attends to the side memory; arguments as :class:`LstT5Encoder`.

    Args:
        init: ``"published"``: logits of the side decoder only; ``"identity"``: its projected output is added to the
            frozen decoder's output and starts at 0.
    """

    def __init__(
        self,
        base: T5Decoder,
        keep: tuple[int, ...] | None = None,
        reduction: int = 8,
        gate: Gate = "learned",
        after: bool = False,
        span: int = 1,
        init: Init = "identity",
    ) -> None:
        super().__init__()
        self.base = freeze(base)
        self.ladder = make_ladder(base, keep, reduction, gate, after, span)
        self.up = nn.Linear(self.ladder.first.out_features, base.token_dim)
        self.residual = init == "identity"
        start_(self.up)
        if self.residual:
            nn.init.zeros_(self.up.weight)

    def forward(self, ids: Tensor, memory: Memory, past: Past | None = None) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            ids: [B, L] int64, starts with the decoder's start token.
            memory: from :class:`LstT5Encoder`.
            past: see :class:`vlkit.adapters.stacks.TextWriter`.

        Returns:
            Side states after the side norm [B, L, d], and the frozen decoder's states after its own norm [B, L, D].
        """
        reduced: list[Tensor] = []
        x = DecoderInput(ids, memory.frozen, memory.mask, None if past is None else past.base)
        for k, stream in run_early(self.base, x, self.ladder.layers, self.base.depth):
            if k in self.ladder.layers:
                reduced.append(self.ladder.reduce(len(reduced), stream.hidden))
        arguments = self.ladder.blocks.start(stream.extras)
        mask, more = arguments["encoder_attention_mask"], memory.side.shape[1] - memory.frozen.shape[1]
        if mask is not None and more:
            arguments["encoder_attention_mask"] = F.pad(mask, (0, more), value=mask.dtype == torch.bool)
        if past is not None:
            arguments[self.base.cache_name] = past.side
        side = self.ladder.climb(reduced, {**arguments, "encoder_hidden_states": memory.side})
        with torch.no_grad():
            return side, self.base.tokens(stream)

    def write(self, start: Tensor, memory: Memory, past: Past | None = None) -> Tensor:
        """See :class:`vlkit.adapters.stacks.TextWriter`."""
        side, frozen = self(start, memory, past)
        out = self.up(side)
        return self.base.logits(frozen + out if self.residual else out)


class LstT5(nn.Module):
    """Both stacks: ``model(x, ids)`` returns vocabulary logits; only side networks and output projection train.

    Args:
        encoder, decoder: both with the same reduction.
        importance: see :func:`start_stacks`.
    """

    def __init__(
        self, encoder: LstT5Encoder, decoder: LstT5Decoder, importance: tuple[Importance, Importance] | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        start_stacks(encoder, decoder, importance)

    def forward(self, x: Any, ids: Tensor, visual: Tensor | None = None) -> Tensor:
        """Logits [B, L, V] for encoder input ``x`` (ids [B, M] int64), decoder ids [B, L] int64 and visual features."""
        return self.decoder.write(ids, self.encoder(x, visual))


def start_stacks(
    encoder: LstT5Encoder, decoder: LstT5Decoder, importance: tuple[Importance, Importance] | None = None
) -> None:
    """Initialise both side networks from the base's weights; the side decoder reads the units the side encoder keeps.

    Args:
        encoder, decoder: both with the same reduction.
        importance: of the encoder's and the decoder's weights (:func:`vlkit.adapters.lst.pruning.prune_`); default:
            their magnitude.
    """
    of_encoder, of_decoder = (None, None) if importance is None else importance
    units = prune_(encoder.ladder.blocks, encoder.base, of_encoder)
    prune_(decoder.ladder.blocks, decoder.base, of_decoder, memory_units=units)
