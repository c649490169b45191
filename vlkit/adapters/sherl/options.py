"""Options of SHERL: which hand-off, which flavour, and how a training step runs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from vlkit.adapters.base import AdaptedEncoder, Chunk, Plain, Runner
from vlkit.adapters.facts import Reads
from vlkit.adapters.handoff import Handoff, TwoHandoffs
from vlkit.adapters.lean.recompute import Lean
from vlkit.adapters.sherl.conv import ConvSherlAdapter
from vlkit.adapters.sherl.pooled import PooledSherlAdapter
from vlkit.adapters.sherl.pooled_lean import Keep, LeanPooledSherlAdapter
from vlkit.adapters.sherl.t5 import SherlT5Decoder, SherlT5Encoder
from vlkit.adapters.sherl.tokens import SherlAdapter
from vlkit.encoders.staged import StagedEncoder
from vlkit.encoders.towers.hf_text import HfText
from vlkit.encoders.towers.t5 import T5Decoder
from vlkit.errors import UserError
from vlkit.number_formats import NumberFormat


@dataclass
class SherlOptions(TwoHandoffs):
    """SHERL: taps of the frozen layers, merged by redundancy, refined by the last frozen blocks."""

    kind: Literal["sherl"] = "sherl"
    feeds_decoder: ClassVar[bool] = True
    couples_samples: ClassVar[bool] = True
    running: ClassVar[tuple[str, ...]] = ("lean", "early_chunk", "tap_dtype", "keep")
    belonging: ClassVar[Any] = dict.fromkeys(("late", "flavour", "dropout"), "tokens") | dict.fromkeys(
        ("base_gate", "keep"), "pooled"
    )
    choosing: ClassVar = ("late", "flavour", "base_gate")

    handoff: Handoff = "auto"
    """Where the merged feature enters: the late blocks (tokens) or the pooled embedding (pooled, least memory). auto:
    tokens if the head reads tokens or --adapter.late or --adapter.flavour is given, else pooled."""
    late: int | None = None
    """Number of last blocks that re-consume the merged feature (tokens only; default 1)."""
    taps: tuple[int, ...] | None = None
    """Depths to tap, 0 = embeddings, k = output of block k - 1; default: every depth of the early route."""
    flavour: Literal["auto", "text", "gated", "mdetr"] = "auto"
    """Published variant for token towers (auto: text); convolutional towers always use the convolutional one."""
    reduction: int | None = None
    """Width D (tokens) or E (pooled) is divided by this inside the adapter; default 2 for tokens, 1 for pooled."""
    init: Literal["published", "identity"] = "identity"
    """identity: start exactly at the base's zero-shot answer; published: gate 0, side feature only."""
    base_gate: bool = False
    """Learned gate on each layer's base token (pooled only)."""
    dropout: float | None = None
    """Dropout on the output (tokens of flavour text only; default 0.1)."""
    lean: bool = True
    """Save only taps for backward and compute the rest again there; false: leave it to autograd (for comparison)."""
    early_chunk: Chunk = "auto"
    """Samples that run through the frozen part at once; 0 = the whole batch, auto = as few as keep the device busy."""
    tap_dtype: NumberFormat = "fp32"
    """Number format of the taps saved for backward. The forward is exact with any; bf16 and int8 round the gradient."""
    keep: Keep = "auto"
    """What is saved of a tap (pooled only): active = values with a gradient, all = everything, without having to wait
    for a GPU to find them; auto = active on the CPU, all on CUDA."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"--adapter.dropout {self.dropout}: give a share from 0 up to, not including, 1")
        if self.dropout is not None and self.flavour not in ("auto", "text"):
            raise UserError("--adapter.dropout: belongs to --adapter.flavour text; leave one of the two out")
        if self.early_chunk != "auto" and self.early_chunk < 0:
            raise UserError(f"--adapter.early_chunk {self.early_chunk}: give 1 or more, 0 (whole batch) or auto")
        if not self.lean:
            for name in self.given(("early_chunk", "tap_dtype", "keep")):
                raise UserError(f"--adapter.{name}: belongs to --adapter.lean true; leave one of the two out")

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> AdaptedEncoder:
        """Freeze ``encoder`` and put this adapter on it, for a head that reads the given view.

        Raises:
            UserError: ``late``, ``taps`` or ``reduction`` do not fit the tower, or an option does not fit the head;
                names the option and the range.
        """
        if self.handoff_for(reads) == "pooled":
            return AdaptedEncoder(encoder, self._pooled(encoder), Plain(self.early_chunk if self.lean else 0))
        runner: Runner = Lean(self.early_chunk, self.tap_dtype) if self.lean else Plain()
        return AdaptedEncoder(encoder, self._tokens(encoder), runner, summary_only=self.lean and reads == "pooled")

    def build_stacks(self, encoder: HfText, decoder: T5Decoder) -> tuple[SherlT5Encoder, SherlT5Decoder]:
        """Flavour T5: the decoder's last block reads a side memory made from the encoder's taps.

        Raises:
            UserError: an option that has no meaning there.
        """
        for name in self.given(field.name for field in fields(self)):
            if name not in ("reduction", "init") and (name, self.handoff) != ("handoff", "tokens"):
                raise UserError(f"--adapter.{name}: SHERL on a decoder is as published (flavour t5); leave it out")
        reduction = 4 if self.reduction is None else self.reduction
        return (
            SherlT5Encoder(encoder, reduction=reduction, init=self.init),
            SherlT5Decoder(decoder, reduction=reduction, init=self.init),
        )

    def for_cells(self) -> SherlOptions:
        """No late blocks, unless asked for: a contrastive base trained its last block for its summary token alone."""
        if self.late is not None or self.handoff_asked_for() == "pooled":
            return self
        return replace(self, late=0)

    def _pooled(self, encoder: StagedEncoder) -> PooledSherlAdapter:
        layers = self._layers(encoder, encoder.depth)
        if not layers:
            raise UserError(f"--adapter.taps []: nothing to merge; give depths from 0..{encoder.depth}")
        hidden = self._hidden(encoder.out_dim, 1 if self.reduction is None else self.reduction)
        widths = tuple(encoder.widths[k] for k in layers)
        what = widths, encoder.out_dim, hidden, layers, self.base_gate, self.init
        if not self.lean:
            return PooledSherlAdapter(*what)
        return LeanPooledSherlAdapter(*what, tap_dtype=self.tap_dtype, keep=self.keep)

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
            # The state that enters the late route is always a tap: it is the guide.
            return tuple(sorted({k for k in encoder.stages if k <= stop} | {stop}))
        if any(not 0 <= k <= stop for k in self.taps) or list(self.taps) != sorted(set(self.taps)):
            raise UserError(
                f"--adapter.taps {list(self.taps)}: give rising depths from 0..{stop} "
                f"(the tower has {encoder.depth} blocks, 0 = embeddings, k = output of block k - 1)"
            )
        return tuple(self.taps)

    @staticmethod
    def _hidden(width: int, reduction: int) -> int:
        if reduction < 1 or width // reduction < 1:
            raise UserError(f"--adapter.reduction {reduction}: width {width} can be divided by 1..{width}")
        return width // reduction
