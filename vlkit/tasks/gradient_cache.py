"""Encode a batch in parts when it does not fit in memory; the gradient is that of the whole batch.

Each part is encoded without saved activations, and encoded again when its gradient is known (GradCache, Gao et al.
2021, arXiv:2101.06983). A step holds the activations of one part, while the loss sees the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def encode_twice(encode: Callable[..., Any], *inputs: Any, anchor: Tensor) -> Any:
    """``encode(*inputs)``, a tensor or a tuple of tensors, whose activations are recomputed in backward.

    Random state is restored, so dropout draws the same masks both times.

    Args:
        encode: part of a model.
        inputs: inputs of the part; tensors, or objects that hold tensors.
        anchor: any tensor on the model's device: its device's random state is restored; inputs may be on the host.
    """
    # Reentrant: the first pass runs without gradient, so that a method with its own backward saves nothing either.
    # It needs an input that requires a gradient.
    asks = torch.empty(0, requires_grad=True)
    return checkpoint(lambda _, __, *given: encode(*given), anchor.detach(), asks, *inputs, use_reentrant=True)
