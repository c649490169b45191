"""Encode a batch that does not fit in memory at once; the gradient stays that of the whole batch.

A part is encoded without its activations being saved, and encoded again when its gradient is known (GradCache, Gao et
al. 2021, arXiv:2101.06983). So a step holds the activations of one part, and the loss sees the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def encode_twice(encode: Callable[..., Any], *inputs: Any, anchor: Tensor) -> Any:
    """``encode(*inputs)``, a tensor or a tuple of them, whose activations are made again in backward.

    Random state is replayed, so dropout draws the same masks both times.

    Args:
        encode: part of a model.
        inputs: of the part; tensors, or what carries them.
        anchor: any tensor on the model's device: it tells whose random state to replay; inputs may be on the host.
    """
    # Reentrant: the first time runs without gradient, so that a method with its own backward saves nothing either.
    # It needs an input that asks for a gradient.
    asks = torch.empty(0, requires_grad=True)
    return checkpoint(lambda _, __, *given: encode(*given), anchor.detach(), asks, *inputs, use_reentrant=True)
