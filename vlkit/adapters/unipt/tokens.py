"""UniPT (CVPR 2024) on tokens: all layers interact with the deepest one and are merged by confidence.

With ``r_i`` the reduced taps, ``a`` the reduced deepest one (the anchor) and K candidates:

    z_i = W C with W = l1(relu(a r_i^T)) + I              attention without softmax, scale and projections
    c_i = linear(mean(a) * mean(r_i)),  alpha = softmax(c_0 .. c_{K-1})
    m = sum_i alpha_i z_i

=============  ============  ========  =====  =====================  ========================  ======================
flavour        reducer       eps       I      after the merge        head                      used on
=============  ============  ========  =====  =====================  ========================  ======================
``text``       norm          1e-8      yes    a + LN(linear(m))      ReLU, linear              BERT
``joint``      norm          1e-6      yes    a + MLP(m)             linear                    CLIP-ViL joint encoder
``mdetr``      norm          1e-7      yes    a + MLP(m)             ReLU, linear, LN          DETR-style stacks
``conv``       guided pool   1e-8      yes    a + BN(conv(m))        ReLU, conv                ResNet and alike
``pooled``     ReLU, linear  clamped   no     m                      ReLU, linear, + embedding CLIP, in the joint space
=============  ============  ========  =====  =====================  ========================  ======================

Nothing is fed back into the base. :mod:`vlkit.adapters.unipt.pooled` has the last flavour.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from vlkit.adapters.hooks import Adapter
from vlkit.adapters.sherl.blocks import LinearHead, LinearNormReducer, PostMLP
from vlkit.adapters.unipt.blocks import (
    ConvEnd,
    GuidedPool,
    LinearPost,
    MemoryFusion,
    ParallelMerge,
)
from vlkit.encoders.staged import Stream

TokenFlavour = Literal["text", "joint", "mdetr", "conv"]
_EPS = {"text": 1e-8, "joint": 1e-6, "mdetr": 1e-7, "conv": 1e-8}


class UniptAdapter(Adapter):
    """UniPT on tokens or a convolutional grid: a side branch whose output replaces that of the last block.

    Args:
        widths: channels of each tap, shallow to deep; the last one is the anchor.
        width: channels of the output; equal to the base's, so that its own pooling can follow.
        hidden: H.
        layers: depths of the taps.
        flavour: see the table above.
        init: ``"published"``: only the branch's output, with PyTorch's initial weights (``joint``: N(0, 0.02) and zero
            bias; ``mdetr``: Xavier). ``"identity"``: it is added to the output of the last block and starts at 0.
        head: False omits the head, for a branch that ends in a side memory (:meth:`side`).
    """

    handoff = "tokens"
    late = 0
    side_blocks = False

    def __init__(
        self,
        widths: tuple[int, ...],
        width: int,
        hidden: int,
        layers: tuple[int, ...],
        flavour: TokenFlavour = "text",
        init: Literal["published", "identity"] = "published",
        head: bool = True,
    ) -> None:
        super().__init__()
        if len(widths) != len(layers) or len(layers) < 2:
            raise ValueError(f"UniPT compares taps with the deepest one: it needs at least 2, got {list(layers)}")
        self.layers, self.flavour, self.residual = tuple(layers), flavour, init == "identity"
        conv = flavour == "conv"
        self.reducers = nn.ModuleList(
            GuidedPool(w, widths[-1], hidden, guided=i + 1 < len(widths)) if conv else LinearNormReducer(w, hidden)
            for i, w in enumerate(widths)
        )
        self.aggregator = ParallelMerge(hidden, _EPS[flavour])
        if conv:
            self.post = ConvEnd(hidden, hidden, norm=True)
        else:
            self.post = LinearPost(hidden) if flavour == "text" else PostMLP(hidden, width)
        self.head = _head(flavour, hidden, width) if head else None
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear) and self.flavour == "joint":
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear) and self.flavour == "mdetr":
                nn.init.xavier_uniform_(module.weight)
        if self.residual and self.head is not None:
            zero_(self.head)

    def reduce(self, index: int, tap: Stream) -> Tensor:
        """[B, L, D] -> [B, L, H]; a grid stays a grid until :meth:`merge` knows the deepest one."""
        if self.flavour == "conv":
            return tap.hidden
        # As published: MDETR's anchor uses the first reducer; elsewhere the reducers are in the order of the taps.
        place = (index + 1) % len(self.layers) if self.flavour == "mdetr" else index
        return self.reducers[place](tap.hidden)

    def side(self, reduced: list[Tensor], mask: Tensor | None) -> Tensor:
        """Output of the branch before its head, [B, L, H]: the anchor plus the merge (``mdetr``: a side memory).

        Args:
            reduced: K + 1 tensors [B, L, H], the anchor last.
            mask: [B, L] bool, True = real token; None = all real.
        """
        *candidates, anchor = reduced
        return anchor + self.post(self.aggregator(anchor, candidates, mask))

    def merge(self, reduced: list[Tensor], last: Tensor, stream: Stream) -> Tensor:
        """[B, L, D] or [B, C, n, n], same shape as ``last``."""
        if self.flavour == "conv":
            deepest = reduced[-1]
            reduced = [r(x, deepest) for r, x in zip(self.reducers, reduced, strict=True)]
        assert self.head is not None
        out = self.head(self.side(reduced, stream.mask))
        if self.flavour == "conv":
            out = out.transpose(1, 2).unflatten(2, stream.hidden.shape[-2:])
        return last + out if self.residual else out


class UniptDecoderAdapter(UniptAdapter):
    """UniPT on a DETR-style decoder: candidates first attend to the encoder's side memory; all levels are returned.

    Args:
        widths, width, hidden, layers: see :class:`UniptAdapter` (flavour ``mdetr``).
    """

    def __init__(self, widths: tuple[int, ...], width: int, hidden: int, layers: tuple[int, ...]) -> None:
        super().__init__(widths, width, hidden, layers, "mdetr")
        self.fusions = nn.ModuleList(MemoryFusion(hidden, self.aggregator.eps) for _ in layers[:-1])
        for fusion in self.fusions:
            nn.init.xavier_uniform_(cast(MemoryFusion, fusion).proj.weight)

    def levels(self, reduced: list[Tensor], memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        """Run the branch.

        Args:
            reduced: K + 1 tensors [B, Q, H] from :meth:`reduce`, the anchor last.
            memory: [B, S, H], the encoder's :meth:`UniptAdapter.side`.
            memory_mask: [B, S] bool, True = real; None = all real.

        Returns:
            [K + 1, B, Q, D]: the fused candidates, shallow to deep, then the merged output (the others serve auxiliary
            losses).
        """
        assert self.head is not None
        *candidates, anchor = reduced
        fused = [fusion(x, memory, memory_mask) for fusion, x in zip(self.fusions, candidates, strict=True)]
        return torch.stack([self.head(x) for x in (*fused, self.side([*fused, anchor], None))])


def _head(flavour: TokenFlavour, hidden: int, width: int) -> nn.Module:
    if flavour == "conv":
        return ConvEnd(hidden, width, relu=True)
    if flavour == "joint":
        return nn.Linear(hidden, width)
    return LinearHead(hidden, width, 1e-5 if flavour == "mdetr" else None)


def zero_(head: Any) -> None:
    """Make a head's output exactly 0."""
    if isinstance(head, nn.Linear):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    else:
        head.zero()
