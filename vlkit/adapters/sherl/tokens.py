"""SHERL (ECCV 2024): merge frozen layers with an anti-redundancy operation, then refine the result in the last blocks.

One implementation covers all published flavours. Their differences are options:

=============  ==========  ========  ====  ===========  ======  =====================================
flavour        reducer     eps       post  head norm    late    used on
=============  ==========  ========  ====  ===========  ======  =====================================
``text``       norm        1e-8      no    1e-12        1       BERT, image-text retrieval
``gated``      gated       1e-6      no    none         1       T5, CLIP-ViL joint encoder
``mdetr``      norm        1e-6      yes   1e-5         0 or 1  DETR-style encoder and decoder
``conv``       conv        1e-8      no    batch norm   1       ResNet and other convolutional towers
``pooled``     ReLU, lin.  1e-6      no    none         0       CLIP towers, in the joint space
=============  ==========  ========  ====  ===========  ======  =====================================

This module has the first three, :mod:`vlkit.adapters.sherl.conv` and :mod:`vlkit.adapters.sherl.pooled` the others.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from vlkit.adapters.hooks import Adapter
from vlkit.adapters.sherl.blocks import (
    GatedReducer,
    LateGate,
    LinearHead,
    LinearNormReducer,
    PostMLP,
    RedundancyAggregator,
)
from vlkit.encoders.staged import Stream

TokenFlavour = Literal["text", "gated", "mdetr"]
_EPS = {"text": 1e-8, "gated": 1e-6, "mdetr": 1e-6}


class SherlAdapter(Adapter):
    """SHERL on tokens: the merged feature replaces the input of the late blocks.

    The deepest tap is the guide, the others are the candidates. Each tap is reduced to width H as soon as its layer
    has run.

    Args:
        widths: channels of each tap, shallow to deep; at least two.
        width: D, channels of the late route's input.
        hidden: H.
        layers: depths of the taps.
        late: number of late blocks.
        flavour: see the table above.
        dropout: dropout on the output of flavour ``text`` (published: 0.1).
        init: ``"published"``: the gate is 0, so the late block first sees only the side feature. ``"identity"``:
            residual 1 and output 0, so training starts exactly at the base's own output.
        gate_temperature: temperature of the late gate.
        init_std: standard deviation of the initial linear weights of flavour ``gated`` (published: CLIP-ViL 0.02, T5
            0.01).
    """

    handoff = "tokens"
    side_blocks = False

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
        check_taps(widths, layers)
        self.layers, self.late, self.flavour = tuple(layers), late, flavour
        reducer = GatedReducer if flavour == "gated" else LinearNormReducer
        self.reducers = nn.ModuleList(reducer(w, hidden) for w in widths)
        post = PostMLP(hidden, width) if flavour == "mdetr" else None
        self.aggregator = RedundancyAggregator(hidden, _EPS[flavour], post)
        norm_eps = {"text": 1e-12, "mdetr": 1e-5}.get(flavour)
        self.head = LinearHead(hidden, width, norm_eps, dropout if flavour == "text" else 0.0)
        self.gate = LateGate(gate_temperature, offset=1.0 if init == "identity" else 0.0)
        self._initialise(init, init_std)

    def _initialise(self, init: str, std: float) -> None:
        # Published: CLIP-ViL and T5 use a normal distribution, MDETR uses Xavier, the others PyTorch's default.
        for module in self.modules():
            if isinstance(module, nn.Linear) and self.flavour == "gated":
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear) and self.flavour == "mdetr":
                nn.init.xavier_uniform_(module.weight)
        if init == "identity":
            self.head.zero()

    def reduce(self, index: int, tap: Stream) -> Tensor:
        """[B, L, D] -> [B, L, H]."""
        return self.reduce_projected(index, self.projection(index)(tap.hidden))

    def projection(self, index: int) -> nn.Linear:
        """See :class:`vlkit.adapters.lean.pieces.Projects`."""
        return self._reducer(index).proj

    def reduce_projected(self, index: int, projected: Tensor) -> Tensor:
        """See :class:`vlkit.adapters.lean.pieces.Projects`."""
        return self._reducer(index).rest(projected)

    def _reducer(self, index: int) -> LinearNormReducer | GatedReducer:
        return cast("LinearNormReducer | GatedReducer", self.reducers[index])

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Tensor:
        """[B, L, D], the shape of ``last``; ``reduced`` are K tensors [B, L, H]."""
        *candidates, guide = reduced
        stack = torch.stack(candidates, dim=-2)
        # Frees the candidates unless the caller holds another reference; backward needs only the stack.
        del candidates
        reduced.clear()
        return self.gate(self.head(self.aggregator(guide, stack)), last)


def check_taps(widths: tuple[int, ...], layers: tuple[int, ...]) -> None:
    """Check that there are at least two taps and one width per tap.

    Raises:
        ValueError: there are not; the message lists the taps.
    """
    if len(widths) != len(layers) or len(layers) < 2:
        raise ValueError(f"SHERL merges candidates under the deepest tap: it needs at least 2 taps, got {list(layers)}")
