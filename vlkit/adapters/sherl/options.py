"""Options of SHERL: which hand-off, which flavour, and how a training step runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.adapters.lean.chunks import EarlyChunk
from vlkit.adapters.lean.kept import TapDtype
from vlkit.adapters.sherl.pooled import PooledSherlAdapter
from vlkit.adapters.sherl.pooled_collect import Keep
from vlkit.adapters.sherl.t5 import SherlT5Decoder, SherlT5Encoder
from vlkit.adapters.sherl.tokens import SherlAdapter
from vlkit.encoders.staged import StagedEncoder
from vlkit.encoders.towers.t5 import T5Decoder, T5Encoder
from vlkit.errors import UserError


@dataclass
class SherlOptions(MethodOptions):
    """SHERL: taps of the frozen layers, merged by redundancy, refined by the last frozen blocks."""

    kind: Literal["sherl"] = "sherl"
    feeds_decoder: ClassVar[bool] = True
    couples_samples: ClassVar[bool] = True
    handoff: Literal["auto", "tokens", "pooled"] = "auto"
    """Where the merged feature enters: the late blocks (tokens) or the pooled embedding (pooled, least memory). auto:
    tokens if the head reads tokens or late, flavour or dropout is given, else pooled."""
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
    """Keep only taps for backward and compute the rest again there; false: leave it to autograd (for comparison)."""
    early_chunk: EarlyChunk = "auto"
    """Samples that run through the frozen part at once; 0 = the whole batch, auto = as few as keep the device busy."""
    tap_dtype: TapDtype = "fp32"
    """Format of the taps kept for backward. The forward is exact with any; bf16 and int8 round the gradient."""
    keep: Keep = "auto"
    """What is kept of a tap (pooled only): active = values with a gradient, all = everything, without having to wait
    for a GPU to find them; auto = active on the CPU, all on CUDA."""

    def __post_init__(self) -> None:
        given = [name for name in ("late", "dropout") if getattr(self, name) is not None]
        given += ["flavour"] if self.flavour != "auto" else []
        if self.handoff == "auto" and given:
            self.handoff = "tokens"
        if self.handoff == "pooled" and given:
            raise UserError(f"--adapter.{given[0]}: belongs to --adapter.handoff tokens; leave one of the two out")
        if self.handoff == "tokens" and self.base_gate:
            raise UserError("--adapter.base_gate: belongs to --adapter.handoff pooled; leave one of the two out")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UserError(f"--adapter.dropout {self.dropout}: give a share from 0 up to, not including, 1")
        self._check_lean()

    def _check_lean(self) -> None:
        if self.early_chunk != "auto" and self.early_chunk < 0:
            raise UserError(f"--adapter.early_chunk {self.early_chunk}: give 1 or more, 0 (whole batch) or auto")
        if self.handoff == "tokens" and self.keep != "auto":
            raise UserError("--adapter.keep: belongs to --adapter.handoff pooled; leave one of the two out")
        for name, default in (("early_chunk", "auto"), ("tap_dtype", "fp32"), ("keep", "auto")):
            if not self.lean and getattr(self, name) != default:
                raise UserError(f"--adapter.{name}: belongs to --adapter.lean true; leave one of the two out")

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> AdaptedEncoder:
        """Freeze ``encoder`` and put this adapter on it, for a head that reads the given view.

        Raises:
            UserError: ``late``, ``taps`` or ``reduction`` do not fit the tower, or the pooled hand-off does not fit a
                head that reads tokens; names the option and the range.
        """
        if reads == "tokens" and (self.handoff == "pooled" or self.base_gate):
            option = "base_gate" if self.base_gate else "handoff pooled"
            raise UserError(
                f"--adapter.{option}: changes the pooled embedding, but this head reads tokens; leave it out"
            )
        if self.handoff == "pooled" or (self.handoff == "auto" and reads == "pooled"):
            layers = self._layers(encoder, encoder.depth)
            if not layers:
                raise UserError(f"--adapter.taps []: nothing to merge; give depths from 0..{encoder.depth}")
            hidden = self._hidden(encoder.out_dim, 1 if self.reduction is None else self.reduction)
            widths = tuple(encoder.widths[k] for k in layers)
            adapter = PooledSherlAdapter(
                widths, encoder.out_dim, hidden, layers, self.base_gate, self.init,
                lean=self.lean, tap_dtype=self.tap_dtype, keep=self.keep,
            )  # fmt: skip
            return AdaptedEncoder(encoder, adapter, self.early_chunk if self.lean else 0)
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
        flavour = "conv" if encoder.spatial else ("text" if self.flavour == "auto" else self.flavour)
        adapter = SherlAdapter(
            tuple(encoder.widths[k] for k in layers),
            width,
            self._hidden(width, 2 if self.reduction is None else self.reduction),
            layers,
            late,
            flavour,
            0.1 if self.dropout is None else self.dropout,
            self.init,
        )
        if not self.lean:
            return AdaptedEncoder(encoder, adapter)
        return AdaptedEncoder(encoder, adapter, self.early_chunk, self.tap_dtype, summary_only=reads == "pooled")

    def build_stacks(self, encoder: T5Encoder, decoder: T5Decoder) -> tuple[SherlT5Encoder, SherlT5Decoder]:
        """Flavour T5: the decoder's last block reads a side memory made from the encoder's taps.

        Raises:
            UserError: an option that has no meaning there.
        """
        for name in ("late", "taps", "dropout"):
            if getattr(self, name) is not None:
                raise UserError(f"--adapter.{name}: SHERL on a decoder is as published (flavour t5); leave it out")
        reduction = 4 if self.reduction is None else self.reduction
        return (
            SherlT5Encoder(encoder, reduction=reduction, init=self.init),
            SherlT5Decoder(decoder, reduction=reduction, init=self.init),
        )

    def for_cells(self) -> SherlOptions:
        """No late blocks, unless asked for: a contrastive base trained its last block for its summary token alone."""
        if self.late is not None or self.handoff == "pooled":
            return self
        return replace(self, late=0)

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
