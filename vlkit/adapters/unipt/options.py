"""Options of UniPT: hand-off and flavour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.facts import Reads
from vlkit.adapters.handoff import Handoff, TwoHandoffs
from vlkit.adapters.unipt.pooled import PooledUniptAdapter
from vlkit.adapters.unipt.tokens import UniptAdapter
from vlkit.encoders.staged import StagedEncoder
from vlkit.errors import UserError


@dataclass
class UniptOptions(TwoHandoffs):
    """UniPT: a parallel branch in which every frozen layer interacts with the deepest one."""

    kind: Literal["unipt"] = "unipt"
    couples_samples: ClassVar[bool] = True
    belonging: ClassVar = {"flavour": "tokens"}
    choosing: ClassVar = ("flavour",)

    handoff: Handoff = "auto"
    """What is adapted: the tokens, or the pooled embedding (least memory). auto: tokens if the head reads tokens or if
    --adapter.flavour is given, otherwise pooled."""
    flavour: Literal["auto", "text", "joint", "mdetr"] = "auto"
    """Published variant for token towers (auto: text); convolutional towers always use the convolutional one."""
    taps: tuple[int, ...] | None = None
    """Depths to tap, 0 = embeddings, k = output of block k - 1; on tokens the last one is the anchor. Default: all."""
    reduction: int | None = None
    """Divisor of the width D (tokens) or E (pooled) inside the adapter; default 2 for tokens, 1 for pooled."""
    init: Literal["published", "identity"] = "identity"
    """identity: start exactly at the base's zero-shot output; published: only the branch's output."""

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> AdaptedEncoder:
        """Freeze ``encoder`` and add the branch, for a head that reads the given view.

        Raises:
            UserError: ``taps`` or ``reduction`` do not fit the tower, or the hand-off is pooled but the head reads
                tokens.
        """
        pooled = self.handoff_for(reads) == "pooled"
        layers = self._layers(encoder, ends_only=encoder.spatial and not pooled)
        widths = tuple(encoder.widths[k] for k in layers)
        if pooled:
            hidden = self._hidden(encoder.out_dim, 1)
            return AdaptedEncoder(encoder, PooledUniptAdapter(widths, encoder.out_dim, hidden, layers, self.init))
        if len(layers) < 2:
            raise UserError(
                f"--adapter.taps {list(layers)}: UniPT compares taps with the last one; "
                f"give two depths or more from 0..{encoder.depth}"
            )
        width = encoder.widths[-1]
        flavour = "conv" if encoder.spatial else ("text" if self.flavour == "auto" else self.flavour)
        if widths[-1] != width:
            raise UserError(f"--adapter.taps {list(layers)}: the last one must be as wide as depth {encoder.depth}")
        adapter = UniptAdapter(widths, width, self._hidden(width, 2), layers, flavour, self.init)
        return AdaptedEncoder(encoder, adapter)

    def _layers(self, encoder: StagedEncoder, ends_only: bool) -> tuple[int, ...]:
        depth, widths = encoder.depth, encoder.widths
        if self.taps is None:
            # Published for convolutional towers: the end of every stage, where the width changes next.
            ends = (k for k in encoder.stages if k == depth or widths[k] != widths[k + 1])
            return tuple(sorted({*ends, depth})) if ends_only else tuple(encoder.stages)
        taps = tuple(self.taps)
        if not taps or any(not 0 <= k <= depth for k in taps) or list(taps) != sorted(set(taps)):
            raise UserError(
                f"--adapter.taps {list(taps)}: give ascending depths from 0..{depth} "
                f"(the tower has {depth} blocks, 0 = embeddings, k = output of block k - 1)"
            )
        return taps

    def _hidden(self, width: int, default: int) -> int:
        reduction = default if self.reduction is None else self.reduction
        if reduction < 1 or width // reduction < 1:
            raise UserError(f"--adapter.reduction {reduction}: width {width} can be divided by 1..{width}")
        return width // reduction
