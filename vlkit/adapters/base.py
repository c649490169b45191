"""A frozen base with an adapter between its early and its late route: the thing that tasks use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.adapters.hooks import Adapter, Joins, WritesLate
from vlkit.encoders.staged import ReadAhead, StagedEncoder, Stream, freeze, in_weights_format, run_early

__all__ = [
    "AdaptedEncoder",
    "Adapter",
    "Chunk",
    "Encoded",
    "MethodOptions",
    "Plain",
    "Reads",
    "Runner",
    "trained_state",
]

Chunk = int | Literal["auto"]
"""Samples that run at once; 0 = the whole batch; ``"auto"`` = as few as keep the processor busy."""
Route = Iterable[tuple[int | None, Stream]]
"""The early route of a chunk as it comes: (number of the tap or None, stream); the last stream is the hand-off."""

# Values of a chunk's hidden state that keep a processor busy: 16 samples of a ViT-B-32 on a CPU, 128 of a ViT-L-14 on a
# GPU, where half as many take 1.2 times as long and an eighth four times (docs/results/early_chunk_gpu.json).
BUSY = {"cpu": 640_000, "cuda": 34_000_000}
FEWEST = 4


class Encoded:
    """What an encoder hands to a task head; each view is computed when it is asked for.

    Args:
        base: the tower that made ``streams``.
        streams: the state after the last block, one for each chunk of the batch. Where a runner made the pooled
            embedding alone, its ``hidden`` is None.
    """

    def __init__(self, base: StagedEncoder, streams: Stream | Sequence[Stream]) -> None:
        self._base, self.streams = base, [streams] if isinstance(streams, Stream) else list(streams)
        self._pooled: Tensor | None = None

    @property
    def pooled(self) -> Tensor:
        """[B, out_dim], the base's pooled embedding after adaptation, not normalised."""
        if self._pooled is None:
            self._pooled = _joined([self._base.pool(s) if s.pooled is None else s.pooled for s in self.streams])
        return self._pooled

    @property
    def tokens(self) -> Tensor:
        """[B, L, token_dim], features after the tower's final norm.

        Raises:
            RuntimeError: the encoder was built for a head that reads the pooled embedding, and made nothing else.
        """
        return _joined([self._base.tokens(self._whole(stream)) for stream in self.streams])

    @property
    def mask(self) -> Tensor | None:
        """[B, L] bool, True = real token; None = all real."""
        masks = [stream.mask for stream in self.streams if stream.mask is not None]
        return _joined(masks) if masks else None

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the image cells, the last tokens of :attr:`tokens`; None for texts."""
        return self._base.grid(self._whole(self.streams[0]))

    @staticmethod
    def _whole(stream: Stream) -> Stream:
        if stream.hidden is None:
            raise RuntimeError("only the pooled embedding was made here; build the encoder with reads='tokens'")
        return stream


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Runner(Protocol):
    """How a route runs: :class:`Plain`, or :class:`vlkit.adapters.lean.recompute.Lean`.

    Attributes:
        chunk: samples at once.
        busy: device type -> values of a chunk's hidden state, for automatic chunks.
    """

    chunk: Chunk
    busy: ClassVar[Mapping[str, int]]

    def run(self, routes: Iterable[Route], model: AdaptedEncoder) -> list[Stream]:
        """Reduce the taps of each chunk and go through ``model.rest``; the streams behind it, one for each chunk."""
        ...


class Plain:
    """Everything once; autograd saves what it needs for backward.

    Args:
        chunk: samples at once, of a pooled adapter; the frozen tokens of chunks are let go of.
    """

    busy: ClassVar[Mapping[str, int]] = BUSY
    chunk: Chunk

    def __init__(self, chunk: Chunk = 0) -> None:
        self.chunk = checked(chunk)

    def run(self, routes: Iterable[Route], model: AdaptedEncoder) -> list[Stream]:
        """See :class:`Runner`."""
        ends = []
        for route in routes:
            reduced = []
            for number, stream in route:
                if number is not None:
                    reduced.append(model.adapter.reduce(number, stream))
            end = model.rest(reduced, stream)
            ends.append(end if self.chunk == 0 else end.replace(hidden=None))
        return ends


class AdaptedEncoder(nn.Module):
    """A frozen base with an adapter. ``forward(x)`` gives :class:`Encoded`.

    The base is frozen here, by object. Only ``adapter`` has parameters that train.

    Args:
        base: the tower.
        adapter: the method.
        runner: how the route runs; default: :class:`Plain`.
        summary_only: the head reads the pooled embedding alone. Where the base pools one token, the last block of the
            late route then runs for that token (:meth:`StagedEncoder.finish_pooled`), and there are no other tokens.
    """

    base: StagedEncoder
    adapter: Any  # an Adapter; methods have more on theirs
    runner: Runner

    def __init__(
        self, base: StagedEncoder, adapter: Adapter, runner: Runner | None = None, summary_only: bool = False
    ) -> None:
        super().__init__()
        self.base, self.adapter, self.runner = freeze(base), adapter, runner or Plain()
        if isinstance(self.runner, Plain) and self.runner.chunk != 0 and adapter.handoff == "tokens":
            raise ValueError(f"chunk {self.runner.chunk}: an adapter on tokens runs in chunks with Lean only")
        self.stop = base.depth - adapter.late
        # What a method writes into the last block may come from any token.
        cut = adapter.handoff == "tokens" and adapter.late > 0 and not isinstance(adapter, WritesLate)
        self.summary_only = summary_only and cut and base.pools_one_token
        self._values: dict[tuple[int, ...], int] = {}

    def forward(self, x: Any) -> Encoded:
        """Early route, adapter, late route; ``x`` is what the tower's ``embed`` takes, or was read before."""
        return self._run(self._early(chunk) for chunk in self._chunks(x))

    def read(self, x: Any) -> tuple[Stream, list[Stream]]:
        """The early route alone, without gradient: the stream at the hand-off and the raw taps (both can be cached)."""
        taps = []
        for number, stream in self._early(x):
            if number is not None:
                taps.append(stream)
        return stream, taps

    def finish(self, stream: Stream, taps: Sequence[Stream]) -> Encoded:
        """Adapter and late route on what :meth:`read` returned, as one chunk; ``forward(x) == finish(*read(x))``."""
        return self._run([self._again(stream, taps)])

    # --- what runners call ---

    def rest(self, reduced: list[Any], stream: Stream) -> Stream:
        """Everything behind the early route. Every runner goes through here, with gradient or without.

        Args:
            reduced: results of ``adapter.reduce``; the list is emptied.
            stream: the stream at the hand-off.

        Returns:
            The stream after the last block, or with ``pooled`` set if the pooled embedding is made already.
        """
        if self.adapter.handoff == "pooled":
            with torch.no_grad():
                # A cache may hold the state in another number format than the base works with.
                last = self.base.pool(stream.to(next(self.base.parameters()).dtype))
            return stream.replace(pooled=self.adapter.merge(reduced, last, stream))
        merged = self.adapter.merge(reduced, stream.hidden, stream)
        reduced.clear()
        return self.late(merged if isinstance(merged, Stream) else stream.replace(hidden=merged))

    def late(self, stream: Stream) -> Stream:
        """The late route, from the stream that the adapter made."""
        for i in range(self.stop, self.base.depth - 1 if self.summary_only else self.base.depth):
            if isinstance(self.adapter, WritesLate):
                stream = self.adapter.late_block(i, stream, partial(self.base.block, i))
            else:
                stream = self.base.block(i, stream)
        if self.summary_only:
            return stream.replace(hidden=None, pooled=self.base.finish_pooled(stream))
        return stream

    # --- the early route ---

    def _run(self, routes: Iterable[Route]) -> Encoded:
        ends = self.runner.run(routes, self)
        if isinstance(self.adapter, Joins):
            ends = [Stream(cast(Tensor, None), pooled=self.adapter.join([end.pooled for end in ends]))]
        return Encoded(self.base, ends)

    def _early(self, x: Any) -> Iterator[tuple[int | None, Stream]]:
        if isinstance(x, ReadAhead):
            yield from self._again(*x.streams(self.base))
            return
        number = {k: i for i, k in enumerate(self.adapter.layers)}
        for k, stream in run_early(self.base, x, self.adapter.layers, self.stop):
            yield number.get(k), stream

    def _again(self, stream: Stream, taps: Sequence[Stream]) -> Iterator[tuple[int | None, Stream]]:
        """The route that :meth:`read` went; a tap at the hand-off is the stream itself."""
        shallower = [i for i, k in enumerate(self.adapter.layers) if k < self.stop]
        yield from ((i, taps[i]) for i in shallower)
        yield len(shallower) if len(shallower) < len(self.adapter.layers) else None, stream

    def _chunks(self, x: Any) -> list[Any]:
        """Cut ``x`` [B, ...] into chunks of nearly equal size; what is no tensor stays whole."""
        if not isinstance(x, Tensor | ReadAhead) or len(x) < 2 or self.runner.chunk == 0:
            return [x]
        size = self.runner.chunk
        if size == "auto":
            # What was read before has no early route: its chunks need not be smaller for the late one.
            read = isinstance(x, ReadAhead)
            busy = BUSY if read else self.runner.busy
            size = busy_samples(x.values if read else self._values_of(x), x.device, busy)
        return list(x.split(even(len(x), int(size))))

    @torch.no_grad()
    def _values_of(self, x: Tensor) -> int:
        """Numbers in the hidden state of one sample like those of ``x``."""
        shape = (*x.shape[1:],)
        if shape not in self._values:
            self._values[shape] = self.base.embed(in_weights_format(self.base, x[:1])).hidden.numel()
        return self._values[shape]


def checked(chunk: Chunk) -> Chunk:
    """``chunk``.

    Raises:
        ValueError: it is negative.
    """
    if chunk != "auto" and chunk < 0:
        raise ValueError(f"chunks of {chunk} samples: give 1 or more, 0 for the whole batch, or 'auto'")
    return chunk


def busy_samples(values: int, device: torch.device, busy: Mapping[str, int] = BUSY) -> int:
    """Samples with ``values`` numbers each in their hidden state that make up ``busy`` values on ``device``."""
    return max(FEWEST, busy.get(device.type, busy["cuda"]) // max(1, values))


def even(count: int, size: int) -> int:
    """The chunk size of at most ``size`` that cuts ``count`` samples most evenly."""
    chunks = max(1, -(-count // size))
    return max(1, -(-count // chunks))


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors worth saving: parameters that train, and the buffers of modules that own such parameters."""
    state: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for prefix, owner in module.named_modules():
        if any(p.requires_grad for p in owner.parameters(recurse=False)):
            for name, buffer in owner.named_buffers(recurse=False):
                if name not in owner._non_persistent_buffers_set:
                    state[f"{prefix}.{name}" if prefix else name] = buffer
    return {name: tensor.detach() for name, tensor in sorted(state.items())}
