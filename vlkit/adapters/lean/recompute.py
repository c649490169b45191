"""Memory-efficient adapter and late route: only the taps are saved, and backward recomputes everything after them.

The first run is streamed and chunked: each tap is reduced and packed as soon as its layer has run, without building a
graph. Backward unpacks the taps of one chunk at a time, runs the chunk with gradient, adds to the gradients of the
weights, and frees the chunk. Random state, autocast and the adapter's buffers are restored from the first run, so
dropout draws the same mask.

An adapter that mixes samples (batch norm) is merged on the whole batch at once; early and late route stay chunked.

Cached taps without late blocks run once: the taps are opened again from their rows, what the adapter saves is small,
and without an early route a second run would be a large part of a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vlkit.adapters.lean.pieces import (
    Conditions,
    LatePiece,
    Piece,
    Projects,
    Route,
    TapFormat,
    cast_to,
    dtype_of,
    piece_for,
    reduce_opened,
)
from vlkit.adapters.lean.replay import Replay
from vlkit.encoders.staged import Stream


class Behind(Protocol):
    """The computation after the early route; see :class:`vlkit.adapters.base.AdaptedEncoder`."""

    adapter: Any  # an Adapter; methods have more on theirs

    def rest(self, reduced: list[Any], stream: Stream) -> Stream:
        """Run from the reduced taps and the stream at the hand-off to the end."""
        ...

    def late(self, stream: Stream) -> Stream:
        """The last part of ``rest``: the late route."""
        ...

    def scaled(self, adapted: Tensor, last: Tensor) -> Tensor:
        """``last`` plus a share of what the adapter added to it."""
        ...


@runtime_checkable
class Coupled(Protocol):
    """An adapter that mixes the samples of a batch (batch norm) and therefore needs the whole batch at once."""

    def gather(self, taps: list[Tensor], last: Tensor) -> list[Tensor]:
        """Extract from a chunk's raw taps what ``merge_gathered`` needs, without using any weight."""
        ...

    def merge_gathered(self, gathered: list[Tensor], last: Tensor) -> Tensor:
        """``merge`` for the whole batch, from the results of ``gather``."""
        ...


class Lean:
    """Run a route in chunks and save only packed taps.

    Args:
        chunk: samples that run at once; 0 = the whole batch, ``"auto"`` = the smallest chunk that uses the device
            fully.
        tap_dtype: number format of the saved taps. The forward is always exact.
    """

    # Backward also runs adapter and late route chunk by chunk, and needs more memory there. On a GPU larger chunks are
    # faster but lose the memory savings (docs/results/early_chunk_gpu.json); set ``chunk`` to choose that.
    busy: Mapping[str, int] = {"cpu": 320_000, "cuda": 3_000_000}

    chunk: int | Literal["auto"]
    tap_dtype: TapFormat

    def __init__(self, chunk: int | Literal["auto"] = "auto", tap_dtype: TapFormat = "fp32") -> None:
        if chunk != "auto" and chunk < 0:
            raise ValueError(f"chunks of {chunk} samples: give 1 or more, 0 for the whole batch, or 'auto'")
        self.chunk, self.tap_dtype = chunk, tap_dtype

    def run(self, routes: Iterable[Route], model: Behind) -> list[Stream]:
        """The streams that ``model.rest`` returns, one per chunk; see :class:`vlkit.adapters.base.Runner`."""
        if isinstance(model.adapter, Coupled):
            return self._coupled(routes, model)
        adapter: Any = model.adapter
        buffers = buffers_of(adapter)
        pieces, ends, outputs, field = [], [], [], "hidden"
        runs_once = adapter.handoff == "tokens" and not adapter.late and isinstance(model.adapter, Projects)
        runs_once = runs_once and torch.is_grad_enabled()
        for route in routes:
            restore_(buffers)  # counters advance once per batch, not once per chunk
            if runs_once and isinstance(route, Replay):
                ends.append(self._run_once(route, model))
                continue
            piece, end = self._first_run(route, model)
            field = "hidden" if end.pooled is None else "pooled"
            pieces.append(piece)
            outputs.append(getattr(end, field))
            ends.append(end.replace(hidden=None, pooled=None))
            del end

        if not pieces:
            return ends
        dtype = dtype_of(adapter)

        def second_run(piece: Piece) -> Tensor:
            with lent(buffers):
                reduced = [piece.reduce_again(i, adapter, dtype) for i in range(len(piece) - 1)]
                return getattr(model.rest(reduced, piece.open(-1, dtype)), field)

        outputs = attach(second_run, pieces, outputs, owner=adapter)
        return [end.replace(**{field: output}) for end, output in zip(ends, outputs, strict=True)]

    @staticmethod
    def _run_once(replay: Replay, model: Behind) -> Stream:
        """Run a chunk of cached taps with a graph; returns the final stream."""
        dtype, reduced = dtype_of(model.adapter), []
        for number, stream in replay:
            if number is not None:
                reduced.append(reduce_opened(number, stream, model.adapter, replay, dtype))
        return model.rest(reduced, cast_to(stream, dtype))

    def _first_run(self, route: Route, model: Behind) -> tuple[Piece | None, Stream]:
        """Run a chunk from start to end without a graph; returns what to save and the final stream."""
        adapter, piece, reduced, dtype = model.adapter, None, [], dtype_of(model.adapter)
        trains = torch.is_grad_enabled()
        with torch.no_grad():
            for number, stream in route:
                if trains and piece is None:
                    piece = piece_for(route, self.tap_dtype, Conditions(stream.hidden.device, adapter.training))
                if number is not None:
                    if piece is None:
                        reduced.append(adapter.reduce(number, cast_to(stream, dtype)))
                    else:
                        reduced.append(piece.reduce(number, stream, adapter, dtype))
            if piece is not None:
                piece.add(stream)
                piece.close()
            return piece, model.rest(reduced, cast_to(stream, dtype))

    # --- adapters that mix samples ---

    def _coupled(self, routes: Iterable[Route], model: Behind) -> list[Stream]:
        """Early route in chunks, adapter on the whole batch, late route in chunks."""
        adapter: Any = model.adapter
        dtype = dtype_of(adapter)
        gathered, streams, states = [], [], []
        with torch.no_grad():
            for route in routes:
                taps: list[Tensor] = []
                for number, state in route:
                    stream = cast_to(state, dtype)
                    if number is not None:
                        taps.append(stream.hidden)
                gathered.append(adapter.gather(taps, stream.hidden))
                states.append(stream.hidden)
                streams.append(stream.replace(hidden=None))
                del taps, stream, state
            maps, last = [torch.cat(column) for column in zip(*gathered, strict=True)], torch.cat(states)
            sizes = [len(state) for state in states]
            del gathered, states
        chunks = model.scaled(self._merge_all(adapter, maps, last), last).split(sizes)
        if adapter.late:
            chunks = self._late(model, streams, chunks)
        return [stream.replace(hidden=chunk) for stream, chunk in zip(streams, chunks, strict=True)]

    @staticmethod
    def _late(model: Behind, streams: list[Stream], chunks: Sequence[Tensor]) -> tuple[Tensor, ...]:
        conditions = Conditions(chunks[0].device, random=False)
        pieces = [LatePiece(stream, conditions) for stream in streams]

        def late(piece: LatePiece, state: Tensor) -> Tensor:
            return model.late(piece.stream.replace(hidden=state)).hidden

        with torch.no_grad():
            outputs = [late(piece, chunk) for piece, chunk in zip(pieces, chunks, strict=True)]
        return attach(late, pieces, outputs, chunks)

    def _merge_all(self, adapter: Any, maps: list[Tensor], last: Tensor) -> Tensor:
        piece, buffers = Piece(self.tap_dtype, Conditions(last.device, adapter.training)), buffers_of(adapter)
        with torch.no_grad():
            merged = adapter.merge_gathered(maps, last)
        if torch.is_grad_enabled():
            for state in (*maps, last):
                piece.add(Stream(state))
            piece.close()

        def second_run(piece: Piece) -> Tensor:
            *maps, last = (piece.open(i).hidden for i in range(len(piece)))
            with lent(buffers):  # batch norm has already counted this batch
                return adapter.merge_gathered(maps, last)

        return attach(second_run, [piece], [merged], owner=adapter)[0]


# --- buffers ---


Buffers = list[tuple[nn.Module, dict[str, Tensor]]]
"""Modules, and copies of their buffers."""


def buffers_of(module: nn.Module) -> Buffers:
    """Copies of the current buffers of ``module``."""
    owned = ((m, {name: b.clone() for name, b in m._buffers.items() if b is not None}) for m in module.modules())
    return [(owner, buffers) for owner, buffers in owned if buffers]


def restore_(saved: Buffers) -> None:
    """Write the saved values back."""
    for owner, buffers in saved:
        for name, buffer in buffers.items():
            owner.get_buffer(name).copy_(buffer)


@contextlib.contextmanager
def lent(saved: Buffers) -> Iterator[None]:
    """Inside the context, modules use copies of the saved buffers; changes to these copies are discarded."""
    own = [(owner, dict(owner._buffers)) for owner, _ in saved]
    for owner, buffers in saved:
        owner._buffers.update((name, buffer.clone()) for name, buffer in buffers.items())
    try:
        yield
    finally:
        for owner, buffers in own:
            owner._buffers.update(buffers)


# --- a graph whose backward recomputes its outputs ---


def attach(
    second_run: Callable[..., Tensor],
    pieces: list[Any],
    outputs: list[Tensor],
    inputs: Sequence[Tensor] | None = None,
    owner: nn.Module | None = None,
) -> tuple[Tensor, ...]:
    """Attach ``outputs``, computed without a graph, to a graph whose backward recomputes each of them.

    Backward can run only once, because it frees the pieces.

    Args:
        second_run: (piece[, input]) -> the recomputed output, with gradient.
        pieces: one for each output, with its ``conditions``.
        outputs: from the first run; returned unchanged if gradients are disabled.
        inputs: one for each output, if gradient flows on to them.
        owner: module whose parameters get a gradient.
    """
    if not torch.is_grad_enabled():
        return tuple(outputs)
    parameters = [p for p in owner.parameters() if p.requires_grad] if owner is not None else []
    return _Again.apply(second_run, owner, pieces, outputs, len(inputs or ()), *(inputs or ()), *parameters)


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        second_run: Callable[..., Tensor],
        owner: nn.Module | None,
        pieces: list[Any],
        outputs: list[Tensor],
        inputs: int,
        *leaves: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.second_run, ctx.owner, ctx.pieces, ctx.inputs = second_run, owner, pieces, inputs
        ctx.save_for_backward(*leaves)  # includes parameters, so that autograd detects changes before backward
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        if ctx.pieces is None:
            raise RuntimeError("the lean route frees its saved tensors during backward: backward can run only once")
        saved = ctx.saved_tensors  # read once: inside torch's checkpoint a second access is an error
        pieces, ctx.pieces = ctx.pieces, None
        found: list[Tensor | None] = [None] * ctx.inputs
        with lent_leaves(ctx.owner) as leaves:
            for i, gradient in enumerate(gradients):
                piece, pieces[i] = pieces[i], None
                if gradient is None:
                    continue
                own = [saved[i].detach().requires_grad_()] if ctx.inputs else []
                with torch.enable_grad(), piece.conditions.again():
                    output = ctx.second_run(piece, *own)
                del piece
                # Adds to each leaf's gradient as soon as it is known: there are never two for every weight.
                torch.autograd.backward(output, gradient, inputs=[*own, *leaves])
                del output
                if own:
                    found[i] = own[0].grad
        return None, None, None, None, None, *found, *(leaf.grad for leaf in leaves)


@contextlib.contextmanager
def lent_leaves(owner: nn.Module | None) -> Iterator[list[Tensor]]:
    """Inside the context, the trained parameters of ``owner`` are leaves of their own that share the values.

    Their ``grad`` adds up without touching that of the parameters, and without their hooks (data-parallel training
    starts to reduce a gradient when a parameter gets one).
    """
    trained = [] if owner is None else [p for p in owner.parameters() if p.requires_grad]
    leaves = [p.detach().requires_grad_() for p in trained]
    leaf_of = {id(p): leaf for p, leaf in zip(trained, leaves, strict=True)}
    modules = [] if owner is None else list(owner.modules())
    places = [(m._parameters, name, p) for m in modules for name, p in m._parameters.items() if id(p) in leaf_of]
    entries: dict[str, Any]
    try:
        for entries, name, p in places:
            entries[name] = leaf_of[id(p)]
        yield leaves
    finally:
        for entries, name, p in places:
            entries[name] = p
