"""A frozen base with an adapter between its early and its late route; tasks use this module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.adapters.hooks import Adapter, Joins, WritesLate
from vlkit.adapters.lean.replay import Replay
from vlkit.adapters.saved.mode import Saved, compressed, name_operations
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
"""Samples that run at once; 0 = the whole batch; ``"auto"`` = the smallest chunk that uses the device fully."""
Route = Iterable[tuple[int | None, Stream]]
"""The early route of a chunk, yielded block by block: (tap number or None, stream); the last one is the hand-off."""

# Values of a chunk's hidden state that use a device fully: 16 samples of a ViT-B-32 on a CPU, 128 of a ViT-L-14 on a
# GPU, where half as many take 1.2 times as long and an eighth four times (docs/results/early_chunk_gpu.json).
BUSY = {"cpu": 640_000, "cuda": 34_000_000}
# Where taps are packed into fewer bytes at the end of a chunk: until then they are held whole.
BUSY_PACKING = BUSY | {"cuda": 8_500_000}
FEWEST = 4


class Encoded:
    """The output of an adapted encoder for a task head; each view is computed on first access.

    Args:
        base: the tower that produced ``streams``.
        streams: the state after the last block, one for each chunk of the batch. ``hidden`` is None if the runner
            computed only the pooled embedding.
    """

    def __init__(self, base: StagedEncoder, streams: Stream | Sequence[Stream]) -> None:
        self._base, self.streams = base, [streams] if isinstance(streams, Stream) else list(streams)
        self._pooled: Tensor | None = None
        self._tokens: Tensor | None = None

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
            RuntimeError: the encoder was built for a head that reads the pooled embedding and computed nothing else.
        """
        if self._tokens is None:
            self._tokens = _joined([self._base.tokens(self._whole(stream)) for stream in self.streams])
        return self._tokens

    @property
    def joint(self) -> Tensor:
        """[B, L, joint_dim], every token in the joint space; only of towers whose ``joint_dim`` is not None."""
        return self._base.project(self.tokens)

    @property
    def mask(self) -> Tensor | None:
        """[B, L] bool, True = real token; None = all real."""
        masks = [stream.mask for stream in self.streams if stream.mask is not None]
        return _joined(masks) if masks else None

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the image patches, which are the last tokens of :attr:`tokens`; None for texts."""
        return self._base.grid(self._whole(self.streams[0]))

    @staticmethod
    def _whole(stream: Stream) -> Stream:
        if stream.hidden is None:
            raise RuntimeError("only the pooled embedding was computed; build the encoder with reads='tokens'")
        return stream


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Runner(Protocol):
    """How a route runs: :class:`Plain`, or :class:`vlkit.adapters.lean.recompute.Lean`.

    Attributes:
        chunk: samples that run at once.
        busy: device type -> size of a chunk's hidden state in values, for automatic chunks.
    """

    chunk: Chunk
    busy: Mapping[str, int]

    def run(self, routes: Iterable[Route], model: AdaptedEncoder) -> list[Stream]:
        """Reduce the taps of each chunk and run ``model.rest``; returns the final stream of each chunk."""
        ...


class Plain:
    """Run everything once; autograd saves what it needs for backward.

    Args:
        chunk: samples that run at once (pooled adapters only); the frozen tokens of a finished chunk are freed.
        busy: values of a chunk's hidden state by device, for ``"auto"``.
    """

    chunk: Chunk

    def __init__(self, chunk: Chunk = 0, busy: Mapping[str, int] = BUSY) -> None:
        self.chunk, self.busy = checked(chunk), busy

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
        summary_only: the head reads only the pooled embedding. If the base pools one token, the last block of the
            late route then computes only that token (:meth:`StagedEncoder.finish_pooled`).
        saved: format of the activations that the late route saves; see :mod:`vlkit.adapters.saved.mode`.

    Attributes:
        mix: factor on what the adapter adds, for evaluation (:mod:`vlkit.adapters.mix`); 1 = as trained.
    """

    base: StagedEncoder
    adapter: Any  # an Adapter; methods have more on theirs
    runner: Runner

    def __init__(
        self,
        base: StagedEncoder,
        adapter: Adapter,
        runner: Runner | None = None,
        summary_only: bool = False,
        saved: Saved = "fp32",
    ) -> None:
        super().__init__()
        self.base, self.adapter, self.runner = freeze(base), adapter, runner or Plain()
        if isinstance(self.runner, Plain) and self.runner.chunk != 0 and adapter.handoff == "tokens":
            raise ValueError(f"chunk {self.runner.chunk}: only Lean can run an adapter on tokens in chunks")
        self.stop = base.depth - adapter.late
        # A method that writes into the last block may read any token there.
        cut = adapter.handoff == "tokens" and adapter.late > 0 and not isinstance(adapter, WritesLate)
        self.summary_only = summary_only and cut and base.pools_one_token
        self.saved: Saved = saved
        if saved != "fp32":
            name_operations(base)
        self.mix = 1.0
        self._values: dict[tuple[int, ...], int] = {}

    def forward(self, x: Any) -> Encoded:
        """Early route, adapter, late route; ``x`` is an input of the tower's ``embed``, or a :class:`ReadAhead`."""
        return self._run(self._early(chunk) for chunk in self._chunks(x))

    def read(self, x: Any) -> tuple[Stream, list[Stream]]:
        """Run only the early route, without gradient: the stream at the hand-off and the taps, as a cache stores
        them (:meth:`Adapter.compact`)."""
        taps = []
        for number, stream in self._early(x):
            if number is not None:
                taps.append(stream)
        return stream, self.adapter.compact(taps, stream)

    def finish(self, stream: Stream, taps: Sequence[Stream]) -> Encoded:
        """Run adapter and late route on the result of :meth:`read` in one chunk; ``forward(x) == finish(*read(x))``."""
        return self._run([iter(self._replay([*taps, stream]))])  # an iterator: the caller may change its streams

    # --- what runners call ---

    def rest(self, reduced: list[Any], stream: Stream) -> Stream:
        """Everything after the early route. Every runner calls this, with or without gradient.

        Args:
            reduced: results of ``adapter.reduce``; the list is emptied.
            stream: the stream at the hand-off.

        Returns:
            The stream after the last block, with ``pooled`` set if the pooled embedding is already computed.
        """
        if self.adapter.handoff == "pooled":
            with torch.no_grad():
                # A cache may store the state in a different dtype than the base uses.
                last = self.base.pool(stream.to(next(self.base.parameters()).dtype))
            merged = self.adapter.merge(reduced, last, stream)
            if isinstance(self.adapter, Joins):  # scaled when it joins its parts, which needs the base's embedding
                return stream.replace(pooled=merged, side=last if self.mix != 1.0 else None)
            return stream.replace(pooled=self.scaled(merged, last))
        last = stream.hidden
        merged = self.adapter.merge(reduced, last, stream)
        reduced.clear()
        if isinstance(merged, Stream):
            return self.late(merged.replace(hidden=self.scaled(merged.hidden, last)))
        return self.late(stream.replace(hidden=self.scaled(merged, last)))

    def scaled(self, adapted: Tensor, last: Tensor) -> Tensor:
        """``last`` plus :attr:`mix` times what the adapter added to it."""
        return adapted if self.mix == 1.0 else last + self.mix * (adapted - last)

    def late(self, stream: Stream) -> Stream:
        """The late route, from the stream that the adapter made."""
        with compressed(self.saved):
            return self._late(stream)

    def _late(self, stream: Stream) -> Stream:
        for i in range(self.stop, self.base.depth - 1 if self.summary_only else self.base.depth):
            if isinstance(self.adapter, WritesLate):
                stream = self._late_block(self.adapter, i, stream)
            else:
                stream = self.base.block(i, stream)
        if self.summary_only:
            return stream.replace(hidden=None, pooled=self.base.finish_pooled(stream))
        return stream

    def _late_block(self, adapter: WritesLate, i: int, stream: Stream) -> Stream:
        """Late block ``i`` of a method that writes before or after it."""
        if self.mix == 1.0:
            return adapter.late_block(i, stream, partial(self.base.block, i))
        ends = []

        def block(changed: Stream) -> Stream:
            ends.append(self.base.block(i, changed.replace(hidden=self.scaled(changed.hidden, stream.hidden))))
            return ends[-1]

        after = adapter.late_block(i, stream, block)
        return after.replace(hidden=self.scaled(after.hidden, ends[-1].hidden))

    # --- the early route ---

    def _run(self, routes: Iterable[Route]) -> Encoded:
        ends = self.runner.run(routes, self)
        if isinstance(self.adapter, Joins):
            pooled = self.adapter.join([end.pooled for end in ends])
            if self.mix != 1.0:
                pooled = self.scaled(pooled, torch.cat([cast(Tensor, end.side) for end in ends]))
            ends = [Stream(cast(Tensor, None), pooled=pooled)]
        return Encoded(self.base, ends)

    def _early(self, x: Any) -> Route:
        return self._replay(x.streams(self.base)) if isinstance(x, ReadAhead) else self._layer_by_layer(x)

    def _layer_by_layer(self, x: Any) -> Iterator[tuple[int | None, Stream]]:
        number = {k: i for i, k in enumerate(self.adapter.layers)}
        for k, stream in run_early(self.base, x, self.adapter.layers, self.stop):
            yield number.get(k), stream

    def _replay(self, streams: Sequence[Stream]) -> Replay:
        """The route of :meth:`read` once more; ``streams`` are the taps and the hand-off."""
        return Replay(streams, self.adapter.layers, self.stop)

    def _chunks(self, x: Any) -> list[Any]:
        """Cut ``x`` [B, ...] into chunks of nearly equal size; other inputs than tensors stay whole."""
        if not isinstance(x, Tensor | ReadAhead) or len(x) < 2 or self.runner.chunk == 0:
            return [x]
        size = self.runner.chunk
        if size == "auto":
            # Cached taps skip the early route, so they need no smaller chunks.
            read = isinstance(x, ReadAhead)
            busy = BUSY if read else self.runner.busy
            size = busy_samples(x.values if read else self._values_of(x), x.device, busy)
        return list(x.split(even(len(x), int(size))))

    @torch.no_grad()
    def _values_of(self, x: Tensor) -> int:
        """Number of values in the hidden state of one sample of the shape of ``x``'s."""
        shape = (*x.shape[1:],)
        if shape not in self._values:
            self._values[shape] = self.base.embed(in_weights_format(self.base, x[:1])).hidden.numel()
        return self._values[shape]


def checked(chunk: Chunk) -> Chunk:
    """Return ``chunk`` if it is valid.

    Raises:
        ValueError: ``chunk`` is negative.
    """
    if chunk != "auto" and chunk < 0:
        raise ValueError(f"chunks of {chunk} samples: give 1 or more, 0 for the whole batch, or 'auto'")
    return chunk


def busy_samples(values: int, device: torch.device, busy: Mapping[str, int] = BUSY) -> int:
    """Number of samples, each with ``values`` values in its hidden state, that add up to ``busy`` on ``device``."""
    return max(FEWEST, busy.get(device.type, busy["cuda"]) // max(1, values))


def even(count: int, size: int) -> int:
    """The chunk size, at most ``size``, that splits ``count`` samples most evenly."""
    chunks = max(1, -(-count // size))
    return max(1, -(-count // chunks))


def trained_state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors to save.

    Trainable parameters, the buffers of modules that own some, and the tensors that a module names in
    ``saved_untrained``.
    """
    state: dict[str, Tensor] = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for prefix, owner in module.named_modules():
        if any(p.requires_grad for p in owner.parameters(recurse=False)):
            for name, buffer in owner.named_buffers(recurse=False):
                if name not in owner._non_persistent_buffers_set:
                    state[f"{prefix}.{name}" if prefix else name] = buffer
        for name in getattr(owner, "saved_untrained", ()):
            place, _, leaf = name.rpartition(".")
            state[f"{prefix}.{name}" if prefix else name] = getattr(owner.get_submodule(place), leaf)
    return {name: tensor.detach() for name, tensor in sorted(state.items())}
