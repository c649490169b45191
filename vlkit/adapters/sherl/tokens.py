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

The first three are here, the others in :mod:`vlkit.adapters.sherl.conv` and :mod:`vlkit.adapters.sherl.pooled`.
"""

from __future__ import annotations

from typing import Literal

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
        """[B, L, D] -> [B, L, H]."""
        return self.reducers[index](tap.hidden)

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Tensor:
        """[B, L, D], the shape of ``last``; ``reduced`` are K tensors [B, L, H]."""
        *candidates, guide = reduced
        stack = torch.stack(candidates, dim=-2)
        # A caller that keeps no other reference to the candidates frees them here: backward needs only the stack.
        del candidates
        reduced.clear()
        return self.gate(self.head(self.aggregator(guide, stack)), last)


def check_taps(widths: tuple[int, ...], layers: tuple[int, ...]) -> None:
    """Refuse fewer than two taps, or another number of widths.

    Raises:
        ValueError: says what was got.
    """
    if len(widths) != len(layers) or len(layers) < 2:
        raise ValueError(f"SHERL merges candidates under the deepest tap: it needs 2 taps or more, got {list(layers)}")
