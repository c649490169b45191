"""Writing with a T5: adapted stacks of any method behind one interface, the loss of a written text, beam search."""

from __future__ import annotations

import torch
from torch import Tensor


def shift_right(targets: Tensor, start_id: int) -> Tensor:
    """Decoder input to predict ``targets`` [B, T]: the start token, then all targets except the last."""
    return torch.cat([torch.full_like(targets[:, :1], start_id), targets[:, :-1]], dim=1)
