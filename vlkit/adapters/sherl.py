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
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder, Adapter, Reads
from vlkit.adapters.blocks import (
    ConvHead,
    ConvReducer,
    GatedReducer,
    LateGate,
    LinearHead,
    LinearNormReducer,
    PostMLP,
    RedundancyAggregator,
    l1_normalise,
)
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
            size = last.shape[-2:]
            reduced = [r(r.pool(x, size)) for r, x in zip(self.reducers, reduced, strict=True)]
        *candidates, guide = reduced
        out = self.aggregator(guide, torch.stack(candidates, dim=-2))
        if self.flavour == "conv":
            out = out.transpose(1, 2).unflatten(2, last.shape[-2:])
        return self.gate(self.head(out), last)


class PooledSherlAdapter(Adapter):
    """SHERL in the joint space (published for CLIP towers): attention-pooled taps refine the pooled embedding.

    With ``x = relu(tap)`` and ``r = W x + c``, the published token score ``(g * r) w + b`` equals
    ``x q + const`` with ``q = W^T (g * w)``, and the pooled vector ``sum_n a_n r_n`` equals
    ``W (sum_n a_n x_n) + c sum_n a_n``. So W meets one vector a sample and layer instead of one a token, and backward
    keeps each tap once; the result is the published one.

    Args:
        widths: channels of each tap.
        out_dim: E, width of the pooled embedding.
        hidden: H.
        layers: depths of the taps; every tap is a candidate.
        base_gate: weigh each layer's base token by ``sigmoid(gamma / 0.1)``, gamma from 1 (published for MSR-VTT).
        init: ``"identity"`` zeroes the output projection: training starts exactly at the base's embedding.
    """

    handoff = "pooled"
    late = 0
    eps = 1e-6

    def __init__(
        self,
        widths: tuple[int, ...],
        out_dim: int,
        hidden: int,
        layers: tuple[int, ...],
        base_gate: bool = False,
        init: Literal["published", "identity"] = "published",
        gate_temperature: float = 0.1,
    ) -> None:
        super().__init__()
        if len(widths) != len(layers) or not layers:
            raise ValueError(f"one width for each tap is needed, got {len(widths)} widths and taps {list(layers)}")
        self.layers = tuple(layers)
        self.reducers = nn.ModuleList(nn.Linear(width, hidden) for width in widths)
        self.guide_reducer = nn.Linear(out_dim, hidden)
        self.token_scores = nn.ModuleList(nn.Linear(hidden, 1) for _ in widths)
        self.base_gate = nn.Parameter(torch.ones(len(widths))) if base_gate else None
        self.gate_temperature = gate_temperature
        self.aggregator = RedundancyAggregator(hidden, self.eps)
        self.head = LinearHead(hidden, out_dim)
        if init == "identity":
            self.head.zero()

    def reduce(self, index: int, tap: Stream) -> Tensor:
        """``relu(tap)`` as [B, L, D]: the only form of the tap that forward and backward need."""
        x = F.relu(tap.hidden)
        return x.flatten(2).transpose(1, 2) if x.dim() == 4 else x

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Tensor:
        """[B, E]: ``last`` plus the merged layers; ``reduced`` are K tensors [B, L, D_k]."""
        guide = self.guide_reducer(F.relu(last))  # [B, H]
        pooled = [self._pool(i, x, guide, stream) for i, x in enumerate(reduced)]
        candidates = torch.stack(pooled, dim=1)  # [B, K, H]
        # Raw residual streams are not normed: in half precision the products of these few vectors would overflow.
        precision = self.aggregator.score.weight.dtype
        with torch.autocast(candidates.device.type, enabled=False):
            merged = self.aggregator(guide.to(precision), candidates.to(precision))
        return self.head(merged) + last

    def _pool(self, index: int, x: Tensor, guide: Tensor, stream: Stream) -> Tensor:
        """Attention pooling of one layer under the guide, plus its base token: [B, L, D] -> [B, H]."""
        reducer, score = self.reducers[index], self.token_scores[index]
        weighted_guide = guide * score.weight[0]
        query = weighted_guide @ reducer.weight  # [B, D]
        scores = torch.einsum("bld,bd->bl", x, query) + (weighted_guide @ reducer.bias + score.bias).unsqueeze(1)
        if stream.mask is not None and x.shape[1] == stream.mask.shape[1]:
            scores = scores * stream.mask
        attention = l1_normalise(F.relu(scores), self.eps)  # [B, L]
        base, share = _base_token(x, stream), attention.sum(1, keepdim=True)
        factor = 1.0 if self.base_gate is None else torch.sigmoid(self.base_gate[index] / self.gate_temperature)
        mixed = torch.einsum("bl,bld->bd", attention, x) + factor * base
        return mixed @ reducer.weight.T + (share + factor) * reducer.bias


def _base_token(x: Tensor, stream: Stream) -> Tensor:
    """The token that sums up the sequence, [B, D]: the tower's summary position, else the mean over real tokens."""
    if stream.summary is not None:
        return x[torch.arange(len(x), device=x.device), stream.summary]
    if stream.mask is None:
        return x.mean(1)
    mask = stream.mask.unsqueeze(-1).to(x.dtype)
    return (x * mask).sum(1) / mask.sum(1).clamp_min(1)


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
            return AdaptedEncoder(
                encoder,
                PooledSherlAdapter(widths, encoder.out_dim, hidden, layers, self.base_gate, self.init),
            )
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
        return AdaptedEncoder(encoder, adapter)

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
