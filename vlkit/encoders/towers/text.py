"""What staged text towers share: which tokens are real, and cutting padding away."""

from __future__ import annotations

import torch
from torch import Tensor

from vlkit.encoders.staged import StagedEncoder


class TextEncoder(StagedEncoder):
    """A staged tower that reads token ids [B, L] int64.

    Attributes:
        causal: a token sees only the tokens before it.
        trimmable: cutting columns that hold nothing but padding off the right end leaves every output as it was.
    """

    causal: bool
    trimmable: bool

    def real(self, ids: Tensor) -> Tensor:
        """[B, L] bool, True = real token, for ids [B, L]."""
        raise TypeError(f"{type(self).__name__} does not say which tokens are real")

    def trim(self, ids: Tensor) -> Tensor:
        """Cut ids [B, L] at the longest real text of the batch if that changes no output; else return them as they are.

        Exact for causal towers (what comes later is never seen) and for towers that mask their padding.
        """
        if not self.trimmable or ids.numel() == 0:
            return ids
        columns = self.real(ids).any(dim=0).nonzero()
        longest = int(columns[-1]) + 1 if len(columns) else 1
        return ids[:, :longest]


def up_to(position: Tensor, length: int) -> Tensor:
    """[B, length] bool: True up to and including ``position`` [B]."""
    return torch.arange(length, device=position.device) <= position.unsqueeze(1)
