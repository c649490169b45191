"""Options of SHERL: hand-off, flavour, and how a training step runs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from vlkit.adapters.base import BUSY, BUSY_PACKING, AdaptedEncoder, Chunk, Plain, Runner
from vlkit.adapters.facts import Reads
from vlkit.adapters.handoff import Handoff, TwoHandoffs
from vlkit.adapters.lean.pieces import TapFormat
from vlkit.adapters.lean.recompute import Lean
from vlkit.adapters.saved.mode import Saved, saved_option
from vlkit.adapters.sherl.conv import ConvSherlAdapter
from vlkit.adapters.sherl.pooled import PooledSherlAdapter
from vlkit.adapters.sherl.pooled_lean import Keep, LeanPooledSherlAdapter
from vlkit.adapters.sherl.t5 import SherlT5Decoder, SherlT5Encoder
from vlkit.adapters.sherl.tokens import SherlAdapter
from vlkit.encoders.staged import StagedEncoder
from vlkit.encoders.towers.hf_text import HfText
from vlkit.encoders.towers.t5 import T5Decoder
from vlkit.errors import UserError


@dataclass
class SherlOptions(TwoHandoffs):
    """SHERL: merges taps of the frozen layers by redundancy and refines the result in the last frozen blocks."""

    kind: Literal["sherl"] = "sherl"
    feeds_decoder: ClassVar[bool] = True
    couples_samples: ClassVar[bool] = True
    gradient_in_base: ClassVar[bool] = True
    running: ClassVar[tuple[str, ...]] = ("lean", "early_chunk", "tap_dtype", "keep", "fused", "saved")
    belonging: ClassVar[Any] = dict.fromkeys(("late", "flavour", "dropout", "saved"), "tokens") | dict.fromkeys(
        ("base_gate", "keep", "fused"), "pooled"
    )
    choosing: ClassVar = ("late", "flavour", "base_gate")

    handoff: Handoff = "auto"
    """Where the merged feature enters: the late blocks (tokens) or the pooled embedding (pooled, least memory). auto:
    tokens if the head reads tokens or if --adapter.late or --adapter.flavour is given, otherwise pooled."""
    late: int | None = None
    """Number of last blocks that read the merged feature (tokens only; default 1)."""
    taps: tuple[int, ...] | None = None
    """Depths to tap, 0 = embeddings, k = output of block k - 1; default: every depth of the early route. On T5 of both
    stacks; the published side layers 1,2,3,5,… of T5-base are the depths 0,2,3,4,6,7,8,10,11,12."""
    flavour: Literal["auto", "text", "gated", "mdetr"] = "auto"
    """Published variant for token towers (auto: text, and gated for classified answers); convolutional towers always
    use the convolutional one."""
    reduction: int | None = None
    """Divisor of the width D (tokens) or E (pooled) inside the adapter; default 2 for tokens, 1 for pooled, 8 for
    grounding and for classified answers."""
    init: Literal["published", "identity"] = "identity"
    """identity: start exactly at the base's zero-shot output; published: gate 0, side feature only."""
    base_gate: bool = False
    """Learn a gate on each layer's base token (pooled only)."""
    dropout: float | None = None
    """Dropout on the output (flavour text on tokens only; default 0.1, for grounding and for classified answers 0)."""
    lean: bool = True
    """Save only the taps and recompute the rest in backward (memory-efficient); false: plain autograd, to compare."""
    early_chunk: Chunk = "auto"
    """Samples that run through the frozen part at once; 0 = the whole batch, auto = the smallest chunk that uses the
    device fully."""
    tap_dtype: TapFormat = "auto"
    """Number format of the taps saved for backward. The forward is always exact; bf16 and int8 round the gradient.
    auto: bf16 on tokens, where taps are most of what a step saves (not in double precision); fp32 for the pooled
    embedding. Cached taps are read again; on tokens their projections are saved instead."""
    keep: Keep = "auto"
    """Which values of a tap are saved (pooled only): active = values with a gradient; all = every value, which avoids
    a device synchronisation on a GPU; auto = active on the CPU, all on CUDA."""
    fused: bool = True
    """On CUDA with whole taps, pool each tap by one kernel that reads it once (Triton; pooled only)."""
    saved: Saved = saved_option()
    """Format of the activations that the late blocks save (tokens only): fp32 (unchanged), int8 or int4. With
    --adapter.lean true they exist only during backward, one chunk at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"--adapter.dropout {self.dropout}: must be at least 0 and less than 1")
        if self.dropout is not None and self.flavour not in ("auto", "text"):
            raise UserError("--adapter.dropout: belongs to --adapter.flavour text; leave one of the two out")
        if self.early_chunk != "auto" and self.early_chunk < 0:
            raise UserError(f"--adapter.early_chunk {self.early_chunk}: give 1 or more, 0 (whole batch) or auto")
        if not self.lean:
            for name in self.given(("early_chunk", "tap_dtype", "keep", "fused")):
                raise UserError(f"--adapter.{name}: belongs to --adapter.lean true; leave one of the two out")

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> AdaptedEncoder:
        """Freeze ``encoder`` and add this adapter, for a head that reads the given view.

        Raises:
            UserError: ``late``, ``taps`` or ``reduction`` do not fit the tower, or an option does not fit the head;
                the message names the option and its range.
        """
        if self.handoff_for(reads) == "pooled":
            packs = self.tap_dtype in ("bf16", "int8") or self.keep == "active"
            runner: Runner = Plain(self.early_chunk if self.lean else 0, BUSY_PACKING if packs else BUSY)
            return AdaptedEncoder(encoder, self._pooled(encoder), runner)
        runner = Lean(self.early_chunk, self.tap_dtype) if self.lean else Plain()
        return AdaptedEncoder(encoder, self._tokens(encoder), runner, self.lean and reads == "pooled", self.saved)

    def build_stacks(self, encoder: HfText, decoder: T5Decoder) -> tuple[SherlT5Encoder, SherlT5Decoder]:
        """Flavour T5: the decoder's last block attends to a side memory computed from the encoder's taps.

        Raises:
            UserError: an option does not apply to T5.
        """
        for name in self.given(field.name for field in fields(self)):
            if name not in ("reduction", "init", "taps") and (name, self.handoff) != ("handoff", "tokens"):
                raise UserError(f"--adapter.{name}: SHERL on a decoder only runs as published; leave it out")
        reduction = 4 if self.reduction is None else self.reduction
        taps = self._layers(encoder, encoder.depth)
        # The decoder's last block is its late route, so it is tapped no deeper than that block's input.
        above = tuple(k for k in taps if k < decoder.depth)
        for side, found in (("encoder", taps), ("decoder", above)):
            if len(found) < 2:
                raise UserError(
                    f"--adapter.taps {list(taps)}: SHERL needs 2 taps or more, and the {side} has {len(found)}; give "
                    f"depths from 0..{encoder.depth}, two of them below {decoder.depth}"
                )
        return (
            SherlT5Encoder(encoder, taps, reduction, init=self.init),
            SherlT5Decoder(decoder, above, reduction, init=self.init),
        )

    def for_cells(self) -> SherlOptions:
        """Use no late blocks unless the user sets them: a contrastive base trained its last block only for the summary
        token."""
        if self.late is not None or self.handoff_asked_for() == "pooled":
            return self
        return replace(self, late=0)

    def for_fusion(self) -> SherlOptions:
        """No late blocks, and a narrow adapter without dropout: what it leaves out is learned by the fusion, and a step
        on cached taps takes half the time (docs/results)."""
        if self.handoff_asked_for() == "pooled":
            return self
        dropout = 0.0 if self.dropout is None and self.flavour in ("auto", "text") else self.dropout
        reduction = 8 if self.reduction is None else self.reduction
        return replace(self.for_cells(), reduction=reduction, dropout=dropout)

    def for_answers(self) -> SherlOptions:
        """The flavour published for answering questions (CLIP-ViL), unless the user asks for another one or for the
        dropout of flavour text: two points more in VQA, but eight fewer in grounding (docs/results)."""
        if self.flavour == "auto" and self.dropout is None and self.handoff_asked_for() != "pooled":
            return replace(self, flavour="gated").for_fusion()
        return self.for_fusion()

    def _pooled(self, encoder: StagedEncoder) -> PooledSherlAdapter:
        layers = self._layers(encoder, encoder.depth)
        if not layers:
            raise UserError(f"--adapter.taps []: nothing to merge; give depths from 0..{encoder.depth}")
        hidden = self._hidden(encoder.out_dim, 1 if self.reduction is None else self.reduction)
        widths = tuple(encoder.widths[k] for k in layers)
        what = widths, encoder.out_dim, hidden, layers, self.base_gate, self.init
        if not self.lean:
            return PooledSherlAdapter(*what)
        taps = "fp32" if self.tap_dtype == "auto" else self.tap_dtype
        return LeanPooledSherlAdapter(*what, tap_dtype=taps, keep=self.keep, fused=self.fused)

    def _tokens(self, encoder: StagedEncoder) -> SherlAdapter | ConvSherlAdapter:
        late = 1 if self.late is None else self.late
        if not 0 <= late < encoder.depth:
            raise UserError(
                f"--adapter.late {late}: this tower has {encoder.depth} blocks; give 0..{encoder.depth - 1}"
            )
        stop = encoder.depth - late
        layers = self._layers(encoder, stop)
        if len(layers) < 2:
            raise UserError(
                f"--adapter.taps {list(layers)}: SHERL needs 2 taps or more; give two depths from 0..{stop}"
            )
        width = encoder.widths[stop]
        hidden = self._hidden(width, 2 if self.reduction is None else self.reduction)
        what = tuple(encoder.widths[k] for k in layers), width, hidden, layers, late
        if encoder.spatial:
            return ConvSherlAdapter(*what, init=self.init)
        flavour = "text" if self.flavour == "auto" else self.flavour
        return SherlAdapter(*what, flavour, 0.1 if self.dropout is None else self.dropout, self.init)

    def _layers(self, encoder: StagedEncoder, stop: int) -> tuple[int, ...]:
        if self.taps is None:
            # The input of the late route is always a tap, because it is the guide.
            return tuple(sorted({k for k in encoder.stages if k <= stop} | {stop}))
        if any(not 0 <= k <= stop for k in self.taps) or list(self.taps) != sorted(set(self.taps)):
            raise UserError(
                f"--adapter.taps {list(self.taps)}: give ascending depths from 0..{stop} "
                f"(the tower has {encoder.depth} blocks, 0 = embeddings, k = output of block k - 1)"
            )
        return tuple(self.taps)

    @staticmethod
    def _hidden(width: int, reduction: int) -> int:
        if reduction < 1 or width // reduction < 1:
            raise UserError(f"--adapter.reduction {reduction}: width {width} can be divided by 1..{width}")
        return width // reduction
