"""What the author of a method writes: :class:`Adapter` with two hooks, and what a few methods have besides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from vlkit.encoders.staged import Stream


class Adapter(nn.Module):
    """The trained part between a frozen base's early and late route. It sees taps, never the encoder.

    A method subclasses this and implements :meth:`reduce` and :meth:`merge`. ``reduce`` is called on a tap as soon as
    its layer is done, before the next block runs, so that only what a method holds of a tap stays in memory. How the
    route runs (plain, in chunks, again in backward, from a cache) is none of its business.

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

    def merge(self, reduced: list[Any], last: Tensor, stream: Stream) -> Tensor | Stream:
        """Fold the reduced taps into ``last``.

        Args:
            reduced: K results of :meth:`reduce`, shallow to deep. May be emptied on the way.
            last: the state the late route would see without the adapter: [B, L, D] or [B, C, H, W] (``"tokens"``), or
                the pooled embedding [B, out_dim] (``"pooled"``); no gradient.
            stream: the stream ``last`` belongs to (its mask and summary positions).

        Returns:
            Same shape as ``last``. On tokens also a whole stream, if something goes along beside ``hidden`` in
            ``side``.
        """
        raise TypeError(f"{type(self).__name__} has no merge")

    def forward(self, taps: list[Stream], last: Tensor) -> Any:
        """Reduce and merge taps that are all at hand; see :meth:`merge` for shapes."""
        merged = self.merge([self.reduce(i, tap) for i, tap in enumerate(taps)], last, taps[-1])
        return self.join([merged]) if isinstance(self, Joins) else merged


@runtime_checkable
class WritesLate(Protocol):
    """An adapter that does something in front of or behind each late block (DTL)."""

    def late_block(self, i: int, stream: Stream, block: Callable[[Stream], Stream]) -> Stream:
        """Run late block ``i`` (0-based): ``block(stream)``, and whatever the method adds."""
        ...


@runtime_checkable
class Joins(Protocol):
    """A pooled adapter whose ``merge`` leaves work for the whole batch (lean SHERL): it returns a part per chunk."""

    def join(self, parts: list[Any]) -> Tensor:
        """[B, out_dim] from what ``merge`` returned for each chunk, in order."""
        ...
