"""Generalised pooling operator (Chen et al., CVPR 2021): learned weights over each dimension's sorted values."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class GeneralizedPooling(nn.Module):
    """Pool [B, L, D] over L: sort each dimension, weight the positions, sum.

    The weights come from a bidirectional GRU over sinusoidal position codes, so they depend only on the number of real
    tokens; mean and max pooling are special cases.

    Args:
        code_dim: width of the position codes.
        hidden: width of the GRU.
        temperature: temperature of the softmax over positions.
    """

    masked_value = -1e4

    def __init__(self, code_dim: int = 32, hidden: int = 32, temperature: float = 0.1) -> None:
        super().__init__()
        self.gru = nn.GRU(code_dim, hidden, batch_first=True, bidirectional=True)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.code_dim, self.hidden, self.temperature = code_dim, hidden, temperature

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool tokens.

        Args:
            tokens: [B, L, D] float.
            mask: [B, L] bool, True = token to pool, at least one in each row; None = all.

        Returns:
            [B, D].
        """
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        lengths = mask.sum(1)
        weights = self.weights(lengths, tokens.shape[1], tokens.dtype)  # [B, L]
        ordered = tokens.masked_fill(~mask.unsqueeze(-1), self.masked_value).sort(dim=1, descending=True).values
        beyond = torch.arange(tokens.shape[1], device=tokens.device) >= lengths.unsqueeze(1)
        return (ordered.masked_fill(beyond.unsqueeze(-1), 0) * weights.unsqueeze(-1)).sum(1)

    def weights(self, lengths: Tensor, longest: int, dtype: torch.dtype) -> Tensor:
        """Weight of each rank, [B, longest]; rows sum to 1 over their real positions; ``lengths`` is [B] int64."""
        # Equal lengths have equal weights, so the GRU runs once per distinct length.
        distinct, row = lengths.unique(return_inverse=True)
        codes = self._codes(longest, lengths.device, dtype).expand(len(distinct), -1, -1)
        packed = pack_padded_sequence(codes, distinct.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=longest)
        both = (states[..., : self.hidden] + states[..., self.hidden :]) / 2
        scores = self.score(both).squeeze(-1)  # [U, longest]
        padding = torch.arange(longest, device=lengths.device) >= distinct.unsqueeze(1)
        return torch.softmax(scores.masked_fill(padding, self.masked_value) / self.temperature, dim=1)[row]

    def _codes(self, length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        # Always float32: published weights were trained on codes rounded to it.
        positions = torch.arange(length, device=device, dtype=torch.float32).unsqueeze(1)
        steps = torch.arange(0, self.code_dim, 2, device=device, dtype=torch.float32)
        angles = positions * torch.exp(steps * -(math.log(10000.0) / self.code_dim))
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(dtype)  # sine and cosine alternate
