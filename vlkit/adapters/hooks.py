"""The interface of a method: :class:`Adapter` with two hooks, and optional protocols that a few methods implement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from vlkit.encoders.staged import Stream


class Adapter(nn.Module):
    """The trained module between a frozen base's early and late route. It sees taps, never the encoder.

    A method subclasses this and implements :meth:`reduce` and :meth:`merge`. ``reduce`` is called on each tap as soon
    as its layer has run, before the next block, so only the reduced tap stays in memory. An adapter need not know how
    the route runs (plain, in chunks, recomputed in backward, from a cache).

    Attributes:
        layers: depths to tap, shallow to deep; 0 = embeddings, k = output of block k - 1.
        late: number of last blocks that read the adapter's output and carry gradient.
        handoff: ``"tokens"``: :meth:`merge` changes the hidden state that enters the late blocks;
            ``"pooled"``: it changes the base's pooled embedding and ``late`` is 0.
        side_blocks: the adapter runs blocks of its own with the tower's masks and position biases
            (:attr:`vlkit.encoders.staged.Stream.extras`); False lets a cache leave these out if ``late`` is 0.
    """

    layers: tuple[int, ...]
    late: int
    handoff: Literal["tokens", "pooled"]
    side_blocks: bool = True

    def reduce(self, index: int, tap: Stream) -> Any:
        """Reduce tap number ``index`` (a position in ``layers``) to the tensor that :meth:`merge` needs."""
        return tap

    def compact(self, taps: list[Stream], stream: Stream) -> list[Stream]:
        """The taps as a cache stores them: whatever the weights do not change may already be done, or left out.

        Args:
            taps: K raw taps, shallow to deep.
            stream: the stream at the hand-off.

        Returns:
            K streams from which :meth:`reduce` and :meth:`merge` compute exactly what they compute from the raw taps.
        """
        return taps

    def merge(self, reduced: list[Any], last: Tensor, stream: Stream) -> Tensor | Stream:
        """Fold the reduced taps into ``last``.

        Args:
            reduced: K results of :meth:`reduce`, shallow to deep. The method may empty the list to free memory.
            last: the input of the late route without the adapter: [B, L, D] or [B, C, H, W] (``"tokens"``), or the
                pooled embedding [B, out_dim] (``"pooled"``); no gradient.
            stream: the stream of ``last`` (its mask and summary positions).

        Returns:
            Same shape as ``last``. With ``"tokens"`` it may be a whole stream that carries extra state in ``side``.
        """
        raise TypeError(f"{type(self).__name__} has no merge")

    def forward(self, taps: list[Stream], last: Tensor) -> Any:
        """Reduce and merge a complete list of taps; see :meth:`merge` for shapes."""
        merged = self.merge([self.reduce(i, tap) for i, tap in enumerate(taps)], last, taps[-1])
        return self.join([merged]) if isinstance(self, Joins) else merged


@runtime_checkable
class WritesLate(Protocol):
    """An adapter that acts before or after each late block (DTL)."""

    def late_block(self, i: int, stream: Stream, block: Callable[[Stream], Stream]) -> Stream:
        """Run late block ``i`` (0-based): ``block(stream)`` plus the method's own operations."""
        ...


@runtime_checkable
class Joins(Protocol):
    """A pooled adapter that finishes its work on the whole batch (lean SHERL): ``merge`` returns a part per chunk."""

    def join(self, parts: list[Any]) -> Tensor:
        """Combine the results of ``merge``, one per chunk and in order, to [B, out_dim]."""
        ...
