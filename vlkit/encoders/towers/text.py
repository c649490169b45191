"""Base class of staged text towers: which tokens are real, and trimming of padding."""

from __future__ import annotations

import torch
from torch import Tensor

from vlkit.encoders.staged import StagedEncoder


class TextEncoder(StagedEncoder):
    """A staged tower that reads token ids [B, L] int64.

    Attributes:
        causal: a token attends only to itself and earlier tokens.
        trimmable: removing all-padding columns at the right end changes no output.
    """

    causal: bool
    trimmable: bool

    def real(self, ids: Tensor) -> Tensor:
        """[B, L] bool, True = real token, for ids [B, L]."""
        raise TypeError(f"{type(self).__name__} does not say which tokens are real")

    def trim(self, ids: Tensor) -> Tensor:
        """Trim ids [B, L] to the longest real text of the batch if that changes no output; otherwise return them as is.

        Exact for causal towers (later tokens are never seen) and for towers that mask their padding.
        """
        if not self.trimmable or ids.numel() == 0:
            return ids
        columns = self.real(ids).any(dim=0).nonzero()
        longest = int(columns[-1]) + 1 if len(columns) else 1
        return ids[:, :longest]


def up_to(position: Tensor, length: int) -> Tensor:
    """[B, length] bool: True up to and including ``position`` [B]."""
    return torch.arange(length, device=position.device) <= position.unsqueeze(1)
