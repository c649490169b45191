"""What every memory-efficient method has in common: an adapter between the early and the late route."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlkit.encoders.staged import StagedEncoder, Stream, freeze, run_blocks, run_early

Reads = Literal["pooled", "tokens"]
"""Which view of :class:`Encoded` a head reads; a method that cannot adapt that view refuses when it is built."""


class Encoded:
    """What an encoder hands to a task head; each view is computed when it is asked for.

    Args:
        base: the tower that made ``stream``.
        stream: the state after the last block.
        pooled: the pooled embedding if an adapter already made it, else the base's own pooling is used.
    """

    def __init__(self, base: StagedEncoder, stream: Stream, pooled: Tensor | None = None) -> None:
        self._base, self._stream, self._pooled = base, stream, pooled

    @property
    def pooled(self) -> Tensor:
        """[B, out_dim], the base's pooled embedding after adaptation, not normalised."""
        if self._pooled is None:
            self._pooled = self._base.pool(self._stream)
        return self._pooled

    @property
    def tokens(self) -> Tensor:
        """[B, L, token_dim], features after the tower's final norm."""
        return self._base.tokens(self._stream)

    @property
    def mask(self) -> Tensor | None:
        """[B, L] bool, True = real token; None = all real."""
        return self._stream.mask

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the picture cells, the last tokens of :attr:`tokens`; None for texts."""
        return self._base.grid(self._stream)


class Adapter(nn.Module):
    """The trained part between a frozen base's early and late route. It sees taps, never the encoder.

    A method subclasses this and implements :meth:`reduce` and :meth:`merge`. ``reduce`` is called on a tap as soon as
    its layer is done, before the next block runs, so that only what a method keeps of a tap stays in memory.

    Attributes:
        layers: depths to tap, shallow to deep; 0 = embeddings, k = output of block k - 1.
        late: number of last blocks that re-consume the adapter's output and carry gradient.
        handoff: ``"tokens"``: :meth:`merge` changes the hidden state that enters the late blocks;
            ``"pooled"``: it changes the base's pooled embedding and ``late`` is 0.
    """

    layers: tuple[int, ...]
    late: int
    handoff: Literal["tokens", "pooled"]

    def reduce(self, index: int, tap: Stream) -> Any:
        """Shrink tap number ``index`` (a position in ``layers``) to what :meth:`merge` needs."""
        return tap

    def merge(self, reduced: list[Any], last: Tensor, stream: Stream) -> Tensor:
        """Fold the reduced taps into ``last``.

        Args:
            reduced: K results of :meth:`reduce`, shallow to deep.
            last: the state the late route would see without the adapter: [B, L, D] or [B, C, H, W] (``"tokens"``), or
                the pooled embedding [B, out_dim] (``"pooled"``); no gradient.
            stream: the stream ``last`` belongs to (its mask and summary positions).

        Returns:
            Same shape as ``last``.
        """
        raise TypeError(f"{type(self).__name__} has no merge")

    def forward(self, taps: list[Stream], last: Tensor) -> Tensor:
        """Reduce and merge taps that are all at hand; see :meth:`merge` for shapes."""
        return self.merge([self.reduce(i, tap) for i, tap in enumerate(taps)], last, taps[-1])


class AdaptedEncoder(nn.Module):
    """A frozen base with an adapter: the thing tasks use. ``forward(x)`` gives :class:`Encoded`.

    The base is frozen here, by object. Only ``adapter`` has parameters that train.
    """

    def __init__(self, base: StagedEncoder, adapter: Adapter) -> None:
        super().__init__()
        self.base = freeze(base)
        self.adapter = adapter
        self.stop = base.depth - adapter.late

    def forward(self, x: Any) -> Encoded:
        """Early route, adapter, late route, pool; taps are reduced while the early route runs."""
        reduced: list[Any] = []
        index = {k: i for i, k in enumerate(self.adapter.layers)}
        for k, stream in run_early(self.base, x, self.adapter.layers, self.stop):
            if k in index:
                reduced.append(self.adapter.reduce(index[k], stream))
        return self._merge_and_finish(reduced, stream)

    def read(self, x: Any) -> tuple[Stream, list[Stream]]:
        """The early route alone, without gradient: the stream at the hand-off and the raw taps (both can be cached)."""
        taps: list[Stream] = []
        wanted = frozenset(self.adapter.layers)
        for k, stream in run_early(self.base, x, self.adapter.layers, self.stop):
            if k in wanted:
                taps.append(stream)
        return stream, taps

    def finish(self, stream: Stream, taps: list[Stream]) -> Encoded:
        """Adapter, late route and pool on what :meth:`read` returned; ``forward(x) == finish(*read(x))``."""
        return self._merge_and_finish([self.adapter.reduce(i, tap) for i, tap in enumerate(taps)], stream)

    def _merge_and_finish(self, reduced: list[Any], stream: Stream) -> Encoded:
        if self.adapter.handoff == "pooled":
            with torch.no_grad():
                last = self.base.pool(stream)
            return Encoded(self.base, stream, self.adapter.merge(reduced, last, stream))
        stream = stream.replace(hidden=self.adapter.merge(reduced, stream.hidden, stream))
        stream = run_blocks(self.base, stream, self.stop, self.base.depth)
        return Encoded(self.base, stream)


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors worth saving: parameters that train, and the buffers of modules that own such parameters."""
    state = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for prefix, owner in module.named_modules():
        if any(p.requires_grad for p in owner.parameters(recurse=False)):
            for name, buffer in owner.named_buffers(recurse=False):
                if name not in owner._non_persistent_buffers_set:
                    state[f"{prefix}.{name}" if prefix else name] = buffer
    return {name: tensor.detach() for name, tensor in sorted(state.items())}
