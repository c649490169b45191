"""The refinement block of R2-Tuning (arXiv:2404.00801, "R2 block"): from the deepest frozen layer to shallower ones.

One block with shared weights walks the last k layers of both towers, deepest first:

    v, q = map_v(V_i), map_q(Q_i)                                          tokens of the clips, tokens of the query
    o = max over query tokens of (softmax over P of (W_q q . W_v v / sqrt(C)) v + q)
    e = v[CLS] + tanh(scale_i) o
    e = g e + (1 - g) h,  g = sigmoid(gate_i)                              from the second step on
    h = temporal(e, q)

The tokens are by far the largest tensors. A step saves none of them: the map and the pooling over tokens run in parts
of the video and are computed again in backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlkit.adapters.r2.temporal import NORM_EPS, Positions, TemporalLayer

Pads = Literal["published", "masked"]
"""Whether padding of the query takes part in the maximum over its tokens (published), or not."""
TOKENS_AT_ONCE = {"cpu": 8_192, "cuda": 131_072}
"""Frame tokens in one part of the map and the pooling, by device."""

ReadTokens = Callable[[int, int], Tensor]
"""(first clip, end) -> tokens of these clips in one layer, [V, t, P, Dv]; padded clips are 0."""


class Refined(NamedTuple):
    """What heads and losses read."""

    frames: Tensor
    """[B, T, C], the state of each clip."""
    query: Tensor
    """[B, L, C], the mapped tokens of the query in the last step."""
    clips: Tensor
    """[k, B, T, C], the mapped summary token of each clip before refinement, deepest layer first."""
    queries: Tensor
    """[k, B, L, C], the mapped tokens of the query, deepest layer first."""


class R2Block(nn.Module):
    """The recurrent refinement block.

    Args:
        video_width: Dv, channels of the image tower.
        query_width: Dq, channels of the text tower.
        width: C.
        steps: k, layers that are read.
        heads, ratio, drop_path: see :class:`vlkit.adapters.r2.temporal.TemporalLayer`.
        dropout: dropout in both maps.
        endpoints: tell the map where a clip begins and ends, as two further channels.
        pads: see :data:`Pads`.
        positions: see :data:`vlkit.adapters.r2.temporal.Positions`.
        lean: compute the large part again in backward instead of saving it.
        temporal: replaces the temporal layer; called with (clips, query, video mask, query mask).
    """

    def __init__(
        self,
        video_width: int,
        query_width: int,
        width: int = 256,
        steps: int = 4,
        heads: int = 8,
        ratio: int = 4,
        dropout: float = 0.5,
        drop_path: float = 0.1,
        endpoints: bool = True,
        pads: Pads = "published",
        positions: Positions = "padded",
        lean: bool = True,
        temporal: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.steps, self.endpoints, self.lean = steps, endpoints, lean
        self.pads: Pads = pads
        self.positions: Positions = positions
        self.video_map = token_map(video_width + 2 * endpoints, width, dropout)
        self.query_map = token_map(query_width, width, dropout)
        self.video_key, self.query_key = nn.Linear(width, width), nn.Linear(width, width)
        self.scale = nn.Parameter(torch.zeros(steps))
        self.gate = nn.Parameter(torch.zeros(steps - 1)) if steps > 1 else None
        self.temporal = temporal or TemporalLayer(width, heads, ratio, drop_path, positions)

    def forward(
        self,
        video: Sequence[ReadTokens | Tensor],
        query: Sequence[Tensor],
        video_mask: Tensor,
        query_mask: Tensor,
        hint: Tensor | None = None,
        videos: Tensor | None = None,
    ) -> Refined:
        """Refine the clips of V videos for B queries.

        Args:
            video: k layers, shallow to deep: tokens [V, T, P, Dv] with the summary token first, or a function that
                reads those of a part (:data:`ReadTokens`).
            query: k layers [B, L, Dq], shallow to deep; padding is 0.
            video_mask: bool [V, T], True = real clip.
            query_mask: bool [B, L], True = real token.
            hint: [B, T, C], added to what enters each step (ours; published: None).
            videos: int64 [B], the video of each query, whose tokens are mapped once for all its queries (ours); None:
                V = B, each query has its own (published).
        """
        if not len(video) == len(query) == self.steps:
            raise ValueError(f"{len(video)} video and {len(query)} query layers; this block reads {self.steps}")
        state: Tensor | None = None
        clips, queries = [], []
        clip_mask = of_queries(video_mask, videos)
        for i in reversed(range(self.steps)):
            read, mapped = _reader(video[i]), self.query_map(query[i])
            summary, pooled = self._pool(read, mapped, video_mask, query_mask, videos)
            entered = summary + self.scale[i].tanh() * pooled
            if hint is not None:
                entered = entered + hint.to(entered.dtype)
            if state is not None and self.gate is not None:
                gate = self.gate[i].sigmoid()
                entered = gate * entered + (1 - gate) * state
            state = self.temporal(entered, mapped, clip_mask, query_mask)
            clips.append(summary)
            queries.append(mapped)
        return Refined(cast(Tensor, state), queries[-1], torch.stack(clips), torch.stack(queries))

    def _pool(
        self, read: ReadTokens, query: Tensor, video_mask: Tensor, query_mask: Tensor, videos: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mapped summary tokens and query-modulated pooling of all clips, [B, T, C] each, part by part."""
        clips, tokens = video_mask.shape[1], read(0, 1).shape[2]
        most = TOKENS_AT_ONCE.get(query.device.type, TOKENS_AT_ONCE["cuda"])
        size = max(1, most // (len(query) * tokens)) if self.lean else clips
        ends = endpoints_of(video_mask, self.positions) if self.endpoints else None

        def part(start: int, stop: int, query: Tensor) -> tuple[Tensor, Tensor]:
            found = read(start, stop)
            if ends is not None:
                own = ends[:, start:stop, None].to(found.dtype).expand(-1, -1, found.shape[2], -1)
                found = torch.cat([found, own], dim=-1)
            mapped = self.video_map(found)
            return of_queries(mapped[:, :, 0], videos).clone(), self._ask(mapped, query, query_mask, videos)

        parts = []
        for start in range(0, clips, size):
            stop = min(clips, start + size)
            again = self.lean and torch.is_grad_enabled()
            found = checkpoint(part, start, stop, query, use_reentrant=False) if again else part(start, stop, query)
            parts.append(cast("tuple[Tensor, Tensor]", found))
        summaries, pooled = zip(*parts, strict=True)
        return torch.cat(summaries, dim=1), torch.cat(pooled, dim=1)

    def _ask(self, video: Tensor, query: Tensor, query_mask: Tensor, videos: Tensor | None) -> Tensor:
        """Tokens [V, t, P, C] pooled for each query token, and the maximum over the query tokens: [B, t, C].

        As published, the pooling itself has no mask.
        """
        asked, keys = self.query_key(query), of_queries(self.video_key(video), videos)
        video = of_queries(video, videos)
        scores = torch.einsum("blc,btpc->btlp", asked, keys) / math.sqrt(query.shape[-1])
        found = torch.einsum("btlp,btpc->btlc", scores.softmax(-1), video) + query.unsqueeze(1)
        if self.pads == "masked":
            found = found.masked_fill(~query_mask[:, None, :, None], -torch.inf)
        return found.max(dim=2).values


def of_queries(values: Tensor, videos: Tensor | None) -> Tensor:
    """Values of V videos -> those of the video ``videos`` [B] of each query; None: each query has its own."""
    return values if videos is None else values.index_select(0, videos)


def token_map(width: int, hidden: int, dropout: float) -> nn.Sequential:
    """Two linear layers, a norm before each: [..., width] -> [..., hidden]."""
    return nn.Sequential(
        nn.LayerNorm(width, NORM_EPS),
        TokenDropout(dropout),
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.LayerNorm(hidden, NORM_EPS),
        TokenDropout(dropout),
        nn.Linear(hidden, hidden),
    )


class TokenDropout(nn.Dropout):
    """Dropout whose mask costs a random byte per value: on a CPU the library's own takes half of a training step.

    The probability is rounded to 1/256; the kept values are scaled by what it then is.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Same shape."""
        dropped = round(self.p * 256)
        if not self.training or dropped == 0 or input.device.type != "cpu":
            return super().forward(input)
        if dropped == 256:
            return input * 0
        words = torch.empty(-(-input.numel() // 8), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
        keep = words.view(torch.uint8)[: input.numel()].view(input.shape) >= dropped
        return input * (keep.to(input.dtype) * (256 / (256 - dropped)))


def endpoints_of(mask: Tensor, positions: Positions = "padded") -> Tensor:
    """Where each clip begins and ends as a share of the video: mask bool [B, T] -> [B, T, 2] in torch's default dtype.

    As published, the end is the begin plus a step, in that dtype.
    """
    steps = torch.arange(mask.shape[1], device=mask.device, dtype=torch.float64)
    length = mask.sum(1) if positions == "own" else torch.full((len(mask),), mask.shape[1], device=mask.device)
    step = 1 / length.double().unsqueeze(1)
    begins = (steps * step).to(torch.get_default_dtype())
    return torch.stack([begins, begins + step.to(begins.dtype)], dim=-1)


def _reader(tokens: ReadTokens | Tensor) -> ReadTokens:
    return (lambda start, stop: tokens[:, start:stop]) if isinstance(tokens, Tensor) else tokens
