"""SHERL (ECCV 2024): merge frozen layers under an anti-redundancy operation, let the last blocks refine the result.

One implementation of all published flavours. What differs between them is an option:

=============  ==========  ========  ====  ===========  ======  =====================================
flavour        reducer     eps       post  head norm    late    used on
=============  ==========  ========  ====  ===========  ======  =====================================
``text``       norm        1e-8      no    1e-12        1       BERT, image-text retrieval
``gated``      gated       1e-6      no    none         1       T5, CLIP-ViL joint encoder
``mdetr``      norm        1e-6      yes   1e-5         0 or 1  DETR-style encoder and decoder
``conv``       conv        1e-8      no    batch norm   1       ResNet and other convolutional towers
``pooled``     ReLU, lin.  1e-6      no    none         0       CLIP towers, in the joint space
=============  ==========  ========  ====  ===========  ======  =====================================

The last one is in :mod:`vlkit.adapters.sherl.pooled`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder, Adapter, Reads
from vlkit.adapters.lean.chunks import EarlyChunk
from vlkit.adapters.lean.kept import TapDtype
from vlkit.adapters.sherl.blocks import (
    ConvHead,
    ConvReducer,
    GatedReducer,
    LateGate,
    LinearHead,
    LinearNormReducer,
    PostMLP,
    RedundancyAggregator,
)
from vlkit.adapters.sherl.pooled import PooledSherlAdapter
from vlkit.adapters.sherl.pooled_collect import Keep
from vlkit.encoders.staged import StagedEncoder, Stream
from vlkit.errors import UserError

TokenFlavour = Literal["text", "gated", "mdetr", "conv"]
_EPS = {"text": 1e-8, "conv": 1e-8, "gated": 1e-6, "mdetr": 1e-6}


class SherlAdapter(Adapter):
    """SHERL on tokens (or a convolutional grid): the merged feature replaces the input of the late blocks.

    The deepest tap is the guide, the others are the candidates. Each tap is reduced to width H as soon as its layer is
    done.

    Args:
        widths: channels of each tap, shallow to deep; at least two.
        width: D, channels of the state that enters the late route.
        hidden: H.
        layers: depths of the taps.
        late: number of late blocks.
        flavour: see the table above.
        dropout: on the output of flavour ``text`` (published: 0.1).
        init: ``"published"``: the gate is 0, the late block first sees the side feature alone. ``"identity"``: residual
            1 and output 0, training starts exactly at the base's own answer.
        gate_temperature: of the late gate.
        init_std: spread of the initial linear weights of flavour ``gated`` (published: CLIP-ViL 0.02, T5 0.01).
    """

    handoff = "tokens"

    def __init__(
        self,
        widths: tuple[int, ...],
        width: int,
        hidden: int,
        layers: tuple[int, ...],
        late: int = 1,
        flavour: TokenFlavour = "text",
        dropout: float = 0.1,
        init: Literal["published", "identity"] = "published",
        gate_temperature: float = 0.1,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        if len(widths) != len(layers) or len(layers) < 2:
            raise ValueError(
                f"SHERL merges candidates under the deepest tap: it needs 2 taps or more, got {list(layers)}"
            )
        self.layers, self.late, self.flavour = tuple(layers), late, flavour
        reducer = {"conv": ConvReducer, "gated": GatedReducer}.get(flavour, LinearNormReducer)
        self.reducers = nn.ModuleList(reducer(w, hidden) for w in widths)
        post = PostMLP(hidden, width) if flavour == "mdetr" else None
        self.aggregator = RedundancyAggregator(hidden, _EPS[flavour], post)
        if flavour == "conv":
            self.head = ConvHead(hidden, width, scaled=init == "identity")
        else:
            norm_eps = {"text": 1e-12, "mdetr": 1e-5}.get(flavour)
            self.head = LinearHead(hidden, width, norm_eps, dropout if flavour == "text" else 0.0)
        self.gate = LateGate(gate_temperature, offset=1.0 if init == "identity" else 0.0)
        self._initialise(init, init_std)

    def _initialise(self, init: str, std: float) -> None:
        # Published: CLIP-ViL and T5 draw from a normal distribution, MDETR uses Xavier, the others PyTorch's default.
        for module in self.modules():
            if isinstance(module, nn.Linear) and self.flavour == "gated":
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear) and self.flavour == "mdetr":
                nn.init.xavier_uniform_(module.weight)
        if init == "identity":
            self.head.zero()

    def reduce(self, index: int, tap: Stream) -> Tensor:
        """[B, L, D] -> [B, L, H]; a grid stays a grid until :meth:`merge` knows the deepest size."""
        if self.flavour == "conv":
            return tap.hidden
        return self.reducers[index](tap.hidden)

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Tensor:
        """[B, L, D] (or [B, C, n, n]) of the same shape as ``last``; ``reduced`` are K tensors [B, L, H]."""
        if self.flavour == "conv":
            return self.merge_gathered(self.gather(reduced, last), last)
        *candidates, guide = reduced
        stack = torch.stack(candidates, dim=-2)
        # A caller that keeps no other reference to the candidates frees them here: backward needs only the stack.
        del candidates
        reduced.clear()
        return self.gate(self.head(self.aggregator(guide, stack)), last)

    @property
    def coupled(self) -> bool:
        """Batch norm looks at the whole batch."""
        return self.flavour == "conv"

    def gather(self, taps: list[Tensor], last: Tensor) -> list[Tensor]:
        """Grids [B, C, h, w] -> grids of the deepest size."""
        return [r.pool(x, last.shape[-2:]) for r, x in zip(self.reducers, taps, strict=True)]

    def merge_gathered(self, gathered: list[Tensor], last: Tensor) -> Tensor:
        """Grids [B, C, n, n] of the deepest size -> ``last`` merged with them."""
        *candidates, guide = (r(x) for r, x in zip(self.reducers, gathered, strict=True))
        out = self.aggregator(guide, torch.stack(candidates, dim=-2))
        return self.gate(self.head(out.transpose(1, 2).unflatten(2, last.shape[-2:])), last)


@dataclass
class SherlOptions:
    """SHERL: taps of the frozen layers, merged by redundancy, refined by the last frozen blocks."""

    kind: Literal["sherl"] = "sherl"
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
