"""What every memory-efficient method has in common: an adapter between the early and the late route."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlkit.adapters.lean.chunks import Chunker, EarlyChunk, in_dtype, samples_of
from vlkit.adapters.lean.kept import TapDtype
from vlkit.adapters.lean.recompute import merged_again, run_again
from vlkit.encoders.staged import ReadAhead, StagedEncoder, Stream, freeze, run_early


class Encoded:
    """What an encoder hands to a task head; each view is computed when it is asked for.

    Args:
        base: the tower that made ``stream``.
        stream: the state after the last block; a list of them, if the batch ran in chunks; or a function that runs the
            tower for either, if nobody kept it.
        pooled: the pooled embedding if an adapter already made it, else the base's own pooling is used.
    """

    def __init__(
        self,
        base: StagedEncoder,
        stream: Stream | list[Stream] | Callable[[], Stream | list[Stream]],
        pooled: Tensor | None = None,
    ) -> None:
        self._base, self._stream, self._pooled = base, stream, pooled

    @property
    def pooled(self) -> Tensor:
        """[B, out_dim], the base's pooled embedding after adaptation, not normalised."""
        if self._pooled is None:
            self._pooled = torch.cat([self._base.pool(stream) for stream in self._streams()])
        return self._pooled

    @property
    def tokens(self) -> Tensor:
        """[B, L, token_dim], features after the tower's final norm."""
        return torch.cat([self._base.tokens(stream) for stream in self._streams()])

    @property
    def mask(self) -> Tensor | None:
        """[B, L] bool, True = real token; None = all real."""
        masks = [stream.mask for stream in self._streams()]
        return None if masks[0] is None else torch.cat(masks)

    def _streams(self) -> list[Stream]:
        if callable(self._stream):
            self._stream = self._stream()
        return self._stream if isinstance(self._stream, list) else [self._stream]

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the picture cells, the last tokens of :attr:`tokens`; None for texts."""
        return self._base.grid(self._streams()[0])


class Adapter(nn.Module):
    """The trained part between a frozen base's early and late route. It sees taps, never the encoder.

    A method subclasses this and implements :meth:`reduce` and :meth:`merge`. ``reduce`` is called on a tap as soon as
    its layer is done, before the next block runs, so that only what a method keeps of a tap stays in memory.

    Attributes:
        layers: depths to tap, shallow to deep; 0 = embeddings, k = output of block k - 1.
        late: number of last blocks that re-consume the adapter's output and carry gradient.
        handoff: ``"tokens"``: :meth:`merge` changes the hidden state that enters the late blocks;
            ``"pooled"``: it changes the base's pooled embedding and ``late`` is 0.
        coupled: :meth:`merge` mixes samples (batch norm), so it needs the whole batch at once.
    """

    layers: tuple[int, ...]
    late: int
    handoff: Literal["tokens", "pooled"]
    coupled: bool = False

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

    def hand_off(self, reduced: list[Any], stream: Stream) -> Stream:
        """The stream that enters the late route (``"tokens"``): by default :meth:`merge` makes its hidden state.

        A method that writes into the late blocks one by one keeps what it carries along in ``stream.side``.
        """
        return stream.replace(hidden=self.merge(reduced, stream.hidden, stream))

    def late_block(self, i: int, stream: Stream, block: Callable[[Stream], Stream]) -> Stream:
        """Run late block ``i`` (0-based): ``block(stream)``, and whatever a method does in front of and behind it."""
        return block(stream)

    def collect(self, reduced: list[Any], last: Tensor, stream: Stream) -> Any:
        """:meth:`merge` for a chunk of samples (``"pooled"`` only), up to where :meth:`join` takes over.

        A method that keeps its own books for backward can hold back here what is better done for the whole batch.
        """
        return self.merge(reduced, last, stream)

    def join(self, parts: list[Any]) -> Tensor:
        """[B, out_dim] from what :meth:`collect` returned for each chunk, in order."""
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def gather(self, taps: list[Tensor], last: Tensor) -> list[Tensor]:
        """What of a chunk's raw taps :meth:`merge_gathered` needs (``coupled`` only); no weight is involved."""
        raise TypeError(f"{type(self).__name__} has no gather")

    def merge_gathered(self, gathered: list[Tensor], last: Tensor) -> Tensor:
        """:meth:`merge` for the whole batch, from what :meth:`gather` returned (``coupled`` only)."""
        raise TypeError(f"{type(self).__name__} has no merge_gathered")

    def forward(self, taps: list[Stream], last: Tensor) -> Tensor:
        """Reduce and merge taps that are all at hand; see :meth:`merge` for shapes."""
        return self.merge([self.reduce(i, tap) for i, tap in enumerate(taps)], last, taps[-1])


class AdaptedEncoder(nn.Module):
    """A frozen base with an adapter: the thing tasks use. ``forward(x)`` gives :class:`Encoded`.

    The base is frozen here, by object. Only ``adapter`` has parameters that train.

    Args:
        base: the tower.
        adapter: the method.
        early_chunk: samples that run through the early route at once, see
            :data:`vlkit.adapters.lean.chunks.EarlyChunk`. With an adapter on tokens it needs ``recompute``.
        recompute: None: autograd keeps what adapter and late route need for backward. Else only the taps are kept, in
            this number format, and adapter and late route run again in backward, chunk by chunk
            (:mod:`vlkit.adapters.lean.recompute`).
        summary_only: the head reads the pooled embedding. With ``recompute``, where the base pools one token, the last
            block of the late route runs for that token alone (:meth:`StagedEncoder.finish_pooled`). The other views of
            :class:`Encoded` are there nonetheless, at the price of another run.
    """

    def __init__(
        self,
        base: StagedEncoder,
        adapter: Adapter,
        early_chunk: EarlyChunk = 0,
        recompute: TapDtype | None = None,
        summary_only: bool = False,
    ) -> None:
        super().__init__()
        if early_chunk != 0 and adapter.handoff == "tokens" and recompute is None:
            raise ValueError(f"early_chunk {early_chunk}: an adapter on tokens runs in chunks only with recompute")
        self.base = freeze(base)
        self.adapter = adapter
        self.stop = base.depth - adapter.late
        self.chunker = Chunker(base, early_chunk, late=recompute is not None)
        self.recompute = recompute
        on_tokens = adapter.handoff == "tokens" and adapter.late > 0
        self.summary_only = summary_only and on_tokens and base.pools_one_token

    def forward(self, x: Any) -> Encoded:
        """Early route, adapter, late route, pool; taps are reduced while the early route runs."""
        if self.recompute is not None:
            return Encoded(self.base, *run_again(self, self.chunker.split(x), self.recompute))
        if self.adapter.handoff == "tokens":
            return self._late(*self._early(x))
        chunks, parts = self.chunker.split(x), []
        for chunk in chunks:
            reduced, stream = self._early(chunk)
            parts.append(self._collect(reduced, stream))
        # Nobody reads the frozen tokens behind a pooled hand-off as a rule: after chunks they are made if asked for.
        return Encoded(self.base, stream if len(chunks) == 1 else lambda: self.read(x)[0], self.adapter.join(parts))

    def read(self, x: Any) -> tuple[Stream, Sequence[Stream]]:
        """The early route alone, without gradient: the stream at the hand-off and the raw taps (both can be cached)."""
        if isinstance(x, ReadAhead):
            return x.streams(self.base)
        taps: list[Stream] = []
        wanted = frozenset(self.adapter.layers)
        for k, stream in run_early(self.base, x, self.adapter.layers, self.stop):
            if k in wanted:
                taps.append(stream)
        return stream, taps

    def finish(self, stream: Stream, taps: Sequence[Stream]) -> Encoded:
        """Adapter, late route and pool on what :meth:`read` returned; ``forward(x) == finish(*read(x))``."""
        if self.recompute is not None:
            return Encoded(self.base, *merged_again(self, stream, taps, self.recompute))
        if self.adapter.handoff == "tokens":
            return self._late([self.adapter.reduce(i, tap) for i, tap in enumerate(taps)], stream)
        parts = []
        for at in self.chunker.slices(stream):
            chunk = stream if len(stream.hidden) <= at.stop - at.start else samples_of(stream, at)
            shorter = taps if chunk is stream else [samples_of(tap, at) for tap in taps]
            parts.append(self._collect([self.adapter.reduce(i, tap) for i, tap in enumerate(shorter)], chunk))
        return Encoded(self.base, stream, self.adapter.join(parts))

    def route(self, x: Any) -> Iterator[tuple[int, Stream]]:
        """Depths and streams of the early route, as :func:`vlkit.encoders.staged.run_early` yields them.

        Args:
            x: what the tower's ``embed`` takes, or an input that was read before.
        """
        if not isinstance(x, ReadAhead):
            yield from run_early(self.base, x, self.adapter.layers, self.stop)
            return
        stream, taps = x.streams(self.base)
        shallower = [i for i, k in enumerate(self.adapter.layers) if k < self.stop]
        yield from ((self.adapter.layers[i], taps[i]) for i in shallower)
        yield self.stop, stream

    def _early(self, x: Any) -> tuple[list[Any], Stream]:
        """The reduced taps, and the stream at the hand-off."""
        reduced: list[Any] = []
        index = {k: i for i, k in enumerate(self.adapter.layers)}
        for k, stream in self.route(x):
            if k in index:
                reduced.append(self.adapter.reduce(index[k], stream))
        return reduced, stream

    def _collect(self, reduced: list[Any], stream: Stream) -> Any:
        with torch.no_grad():
            # A cache may hold the state in fewer bits than the base works with.
            last = self.base.pool(in_dtype(stream, next(self.base.parameters()).dtype))
        return self.adapter.collect(reduced, last, stream)

    def _late(self, reduced: list[Any], stream: Stream) -> Encoded:
        stream = self.adapter.hand_off(reduced, stream)
        for i in range(self.stop, self.base.depth):
            stream = self.adapter.late_block(i, stream, partial(self.base.block, i))
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
