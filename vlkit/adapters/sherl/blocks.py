"""Building blocks of SHERL: reducers, the redundancy aggregation, output heads and the late gate."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LinearNormReducer(nn.Module):
    """[..., D] -> [..., H]: linear, then layer norm (published flavours ``text`` and ``mdetr``)."""

    def __init__(self, width: int, hidden: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.proj(x))

    def rest(self, projected: Tensor) -> Tensor:
        """Everything after the first linear map."""
        return self.norm(projected)


class GatedReducer(nn.Module):
    """[..., D] -> [..., H]: ReLU MLP with a skip and a sigmoid gate (published flavours ``t5`` and ``clipvil``)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, hidden)
        self.gate = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.proj(x))

    def rest(self, projected: Tensor) -> Tensor:
        """Everything after the first linear map."""
        h = F.relu(projected)
        return (self.up(h) + h) * torch.sigmoid(self.gate(h))


class ConvReducer(nn.Module):
    """[B, C, h, w] -> [B, n * n, H]: max plus average pooling to the deepest grid, 1x1 convolution, batch norm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width, hidden, kernel_size=1)
        self.norm = nn.BatchNorm2d(hidden)

    def pool(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Sum (not mean) of both poolings, as published: a map that needs no pooling is doubled."""
        return F.adaptive_max_pool2d(x, size) + F.adaptive_avg_pool2d(x, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x)).flatten(2).transpose(1, 2)


class PostMLP(nn.Module):
    """The MLP on the aggregate in flavour ``mdetr``: H -> D -> H with a ReLU, then layer norm."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, width)
        self.down = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.down(F.relu(self.up(x))))


class RedundancyAggregator(nn.Module):
    """Merge K candidates of width H under a guide; redundant candidates share one vote.

    With ``U = F / (|F| + eps)``: redundancy ``R = sum relu(U U^T)``, score ``s = (F * g) w + b``, weights
    ``p = l1(relu(s) / R)`` over the candidates (not a softmax: all may be zero), result ``post(sum p F) + g``
    (SHERL, section 3.2). The product is over candidates, never over tokens.

    Args:
        hidden: H.
        eps: added after the root in the unit vectors and to the sum in the L1 norm.
        post: module applied to the aggregate before the guide is added; None = identity.
    """

    def __init__(self, hidden: int, eps: float, post: nn.Module | None = None) -> None:
        super().__init__()
        self.score = nn.Linear(hidden, 1)
        self.post = post
        self.eps = eps

    def forward(self, guide: Tensor, candidates: Tensor) -> Tensor:
        """Aggregate.

        Args:
            guide: [..., H].
            candidates: [..., K, H].

        Returns:
            [..., H].
        """
        merged = _Merge.apply(candidates, guide * self.score.weight[0], self.score.bias, self.eps)
        return (merged if self.post is None else self.post(merged)) + guide

    def weights(self, guide: Tensor, candidates: Tensor) -> Tensor:
        """The weight of each candidate, [..., K]; non-negative, sums to at most 1."""
        # F (g * w) equals (F * g) w and needs no temporary tensor of the candidates' size.
        return _shares(*_products(candidates, guide * self.score.weight[0]), self.score.bias, self.eps)


def refine(
    aggregator: RedundancyAggregator, head: nn.Module, guide: Tensor, candidates: Tensor, last: Tensor
) -> Tensor:
    """Merge K pooled layers [B, K, H] under the guide [B, H] and add the result to ``last`` [B, E]: [B, E]."""
    # Raw residual streams are not normalised: in half precision the products of these vectors would overflow.
    precision = aggregator.score.weight.dtype
    with torch.autocast(candidates.device.type, enabled=False):
        merged = aggregator(guide.to(precision), candidates.to(precision))
    return head(merged) + last


def _products(candidates: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Scores without bias [..., K] and Gram matrices [..., K, K]."""
    return (candidates @ query.unsqueeze(-1)).squeeze(-1), candidates @ candidates.transpose(-1, -2)


def _shares(score: Tensor, gram: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The weights ``p``, [..., K]; normalising the Gram matrix after the product gives the same result."""
    square = gram.diagonal(dim1=-2, dim2=-1)
    # An all-zero candidate has norm 0: the clamp keeps the gradient of the root finite and changes nothing else.
    norm = square.clamp_min(torch.finfo(gram.dtype).tiny).sqrt() + eps
    redundancy = F.relu(gram / (norm.unsqueeze(-1) * norm.unsqueeze(-2))).sum(-1)
    # The diagonal alone gives about 1, unless every candidate is zero: the clamp then avoids 0 / 0.
    return l1_normalise(F.relu(score + bias) / redundancy.clamp_min(1e-6), eps)


class _Merge(torch.autograd.Function):
    """``sum p F``. The candidates' gradient has three terms, which are accumulated in one tensor of the same size.

    Everything else has size K or K x K per token: the products are saved, and autograd recomputes the rest.
    """

    @staticmethod
    def forward(ctx: Any, candidates: Tensor, query: Tensor, bias: Tensor, eps: float) -> Tensor:
        score, gram = _products(candidates, query)
        ctx.save_for_backward(candidates, query, bias, score, gram)
        ctx.eps = eps
        return (_shares(score, gram, bias, eps).unsqueeze(-2) @ candidates).squeeze(-2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        candidates, query, bias, score, gram = ctx.saved_tensors
        gradient, query_ = gradient.to(candidates.dtype), query.to(candidates.dtype)
        with torch.autocast(candidates.device.type, enabled=False):
            score, gram, bias = leaves = [value.detach().requires_grad_() for value in (score, gram, bias)]
            with torch.enable_grad():
                shares = _shares(score, gram, bias, ctx.eps)
            of_shares = (candidates @ gradient.unsqueeze(-1)).squeeze(-1)
            found = torch.autograd.grad(shares, leaves, of_shares.to(shares.dtype))
            of_score, of_gram = (value.to(candidates.dtype) for value in found[:2])
            of_query = (of_score.unsqueeze(-2) @ candidates).squeeze(-2)
            of_candidates = (of_gram + of_gram.transpose(-1, -2)) @ candidates
            of_candidates.addcmul_(shares.detach().to(candidates.dtype).unsqueeze(-1), gradient.unsqueeze(-2))
            of_candidates.addcmul_(of_score.unsqueeze(-1), query_.unsqueeze(-2))
        return of_candidates, of_query.to(query.dtype), found[2], None


def l1_normalise(x: Tensor, eps: float) -> Tensor:
    """``x / (sum |x| + eps)`` over the last dimension."""
    return x / (x.abs().sum(-1, keepdim=True) + eps)


class LinearHead(nn.Module):
    """[..., H] -> [..., D]: ReLU, linear, layer norm (if ``norm_eps`` is given) and dropout."""

    def __init__(self, hidden: int, width: int, norm_eps: float | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden, width)
        self.norm = None if norm_eps is None else nn.LayerNorm(width, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(F.relu(x))
        return self.dropout(x if self.norm is None else self.norm(x))

    def zero(self) -> None:
        """Make the output exactly 0. With a norm, zero the norm's gain: its backward would explode on a zero input."""
        owner = self.proj if self.norm is None else self.norm
        nn.init.zeros_(owner.weight)
        nn.init.zeros_(owner.bias)


class ConvHead(nn.Module):
    """[B, H, n, n] -> [B, C, n, n]: 1x1 convolution, batch norm, ReLU (unlike :class:`LinearHead`, no ReLU first).

    Args:
        hidden: H.
        width: C.
        scaled: add a per-channel factor after the ReLU (needed to start at zero: a ReLU at 0 passes no gradient).
    """

    def __init__(self, hidden: int, width: int, scaled: bool = False) -> None:
        super().__init__()
        self.proj = nn.Conv2d(hidden, width, kernel_size=1)
        self.norm = nn.BatchNorm2d(width)
        self.scale = nn.Parameter(torch.ones(width, 1, 1)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.proj(x)))
        return x if self.scale is None else x * self.scale

    def zero(self) -> None:
        """Make the output exactly 0 (needs ``scaled``)."""
        assert self.scale is not None  # scaled
        nn.init.zeros_(self.scale)


class LateGate(nn.Module):
    """Add the base's state to the side feature, scaled by ``offset + tanh(gamma / temperature)``.

    Published: offset 0 and gamma 0, so the late block first sees only the side feature. With offset 1 training starts
    at the base's own state. ``gamma`` has shape [1]; at 0 its gradient is ``1 / temperature`` times that of the factor.
    """

    def __init__(self, temperature: float = 0.1, offset: float = 0.0) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.temperature = temperature
        self.offset = offset

    def forward(self, side: Tensor, last: Tensor) -> Tensor:
        """``side + factor * last``; both have the same shape."""
        return side + (self.offset + torch.tanh(self.gamma / self.temperature)) * last
