"""Adapter and late route in little memory: only the taps are kept, everything behind them runs again in backward.

The first run is streamed and chunked: each tap is reduced and packed as soon as its layer is done, and no graph is
made. Backward opens one chunk's taps at a time, runs the chunk with gradient, adds its share to the gradients of the
weights, and lets go of the chunk. Random state and autocast are those of the first run, so dropout draws the same mask.

An adapter that mixes samples (batch norm) is merged for the whole batch at once; early and late route stay chunked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vlkit.adapters.chunks import in_dtype
from vlkit.adapters.kept import Kept, TapDtype
from vlkit.encoders.staged import Stream, run_blocks

if TYPE_CHECKING:
    from vlkit.adapters.base import AdaptedEncoder, Adapter

Route = Iterator[tuple[int, Stream]]
"""Depths and streams, as :func:`vlkit.encoders.staged.run_early` yields them."""
Finished = tuple[list[Stream], Tensor | None]
"""The streams after the last block, one a chunk, and the pooled embedding if the adapter made it."""


class Conditions:
    """Random state and autocast as they are now, to be had again later.

    Args:
        device: where the work is done.
        random: whether it draws random numbers.
    """

    def __init__(self, device: torch.device, random: bool) -> None:
        self._device, self._states = device, None
        self._autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        if random:
            on_cuda = device.type == "cuda"
            self._states = torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_cuda else None

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Within it, things are as they were; afterwards they are as if nothing had been drawn."""
        enabled, dtype = self._autocast
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.autocast(self._device.type, dtype=dtype, enabled=enabled):
            if self._states is None:
                yield
                return
            with torch.random.fork_rng(devices=devices):
                torch.set_rng_state(self._states[0])
                if self._states[1] is not None:
                    torch.cuda.set_rng_state(self._states[1], self._device)
                yield


class Piece:
    """The states that a second run of a chunk starts from, packed as they come.

    Args:
        tap_dtype: number format.
        conditions: of the first run.
    """

    def __init__(self, tap_dtype: TapDtype, conditions: Conditions) -> None:
        self._tap_dtype, self.conditions = tap_dtype, conditions
        self._streams: list[tuple[Stream, Kept]] = []
        self._newest: Tensor | None = None

    def add(self, stream: Stream) -> None:
        """Keep ``stream``; if its state is the one added last, that is not kept twice."""
        kept = self._streams[-1][1] if stream.hidden is self._newest else Kept(stream.hidden, self._tap_dtype)
        self._newest = stream.hidden
        self._streams.append((stream.replace(hidden=None), kept))

    def close(self) -> None:
        """Let go of the newest state itself."""
        self._newest = None

    def open(self) -> list[Stream]:
        """The streams in the order they were added."""
        return [stream.replace(hidden=kept.open()) for stream, kept in self._streams]


def run_again(model: AdaptedEncoder, chunks: list[Any], tap_dtype: TapDtype) -> Finished:
    """The whole encoder on a batch that is cut in ``chunks``; each is what :meth:`AdaptedEncoder.route` takes."""
    adapter = model.adapter
    routes = (model.route(chunk) for chunk in chunks)
    return _coupled(model, routes, tap_dtype) if adapter.coupled else _independent(model, routes, tap_dtype)


def merged_again(model: AdaptedEncoder, stream: Stream, taps: list[Stream], tap_dtype: TapDtype) -> Finished:
    """The same for one batch whose early route is done: the stream at the hand-off, and the taps."""
    route = [*zip(model.adapter.layers, taps, strict=True), (-1, stream)]
    return (_coupled if model.adapter.coupled else _independent)(model, [iter(route)], tap_dtype)


def _independent(model: AdaptedEncoder, routes: Iterable[Route], tap_dtype: TapDtype) -> Finished:
    pieces, ends, outputs = [], [], []
    for route in routes:
        piece, end, output = _first_run(model, route, tap_dtype)
        pieces.append(piece)
        ends.append(end)
        outputs.append(output)

    def second_run(piece: Piece) -> Tensor:
        *taps, stream = (in_dtype(stream, _dtype(model)) for stream in piece.open())
        return _rest(model, [model.adapter.reduce(i, tap) for i, tap in enumerate(taps)], stream)[1]

    outputs = attach(second_run, pieces, outputs, owner=model.adapter)
    if model.adapter.handoff == "pooled":
        return ends, torch.cat(outputs)
    return [end.replace(hidden=output) for end, output in zip(ends, outputs, strict=True)], None


def _first_run(model: AdaptedEncoder, route: Route, tap_dtype: TapDtype) -> tuple[Piece | None, Stream, Tensor]:
    """A chunk from start to end without a graph: what to keep, the stream after the last block, and the output."""
    adapter, piece, reduced = model.adapter, None, []
    trains = torch.is_grad_enabled()
    with torch.no_grad():
        for k, stream in route:
            if trains and piece is None:
                piece = Piece(tap_dtype, Conditions(stream.hidden.device, adapter.training))
            if len(reduced) < len(adapter.layers) and k == adapter.layers[len(reduced)]:
                if piece is not None:
                    piece.add(stream)
                reduced.append(adapter.reduce(len(reduced), in_dtype(stream, _dtype(model))))
        if piece is not None:
            piece.add(stream)
            piece.close()
        end, output = _rest(model, reduced, in_dtype(stream, _dtype(model)))
    return piece, end.replace(hidden=None) if adapter.handoff == "tokens" else end, output


def _dtype(model: AdaptedEncoder) -> torch.dtype:
    """The number format that adapter and late route work with; a cache may hold taps in another one."""
    return next(model.adapter.parameters()).dtype


def _rest(model: AdaptedEncoder, reduced: list[Any], stream: Stream) -> tuple[Stream, Tensor]:
    """Adapter and late route: the stream after the last block, and the output that carries gradient."""
    if model.adapter.handoff == "pooled":
        with torch.no_grad():
            last = model.base.pool(stream)
        return stream, model.adapter.merge(reduced, last, stream)
    stream = stream.replace(hidden=model.adapter.merge(reduced, stream.hidden, stream))
    reduced.clear()
    stream = run_blocks(model.base, stream, model.stop, model.base.depth)
    return stream, stream.hidden


# --- samples that meet in the adapter ---


@dataclass(frozen=True)
class LatePiece:
    """What a second run of the late route starts from, besides the merged state."""

    stream: Stream
    conditions: Conditions


def _coupled(model: AdaptedEncoder, routes: Iterable[Route], tap_dtype: TapDtype) -> Finished:
    """Early route by chunks, the adapter on the whole batch, late route by chunks."""
    adapter, gathered, streams, states = model.adapter, [], [], []
    with torch.no_grad():
        for route in routes:
            taps: list[Tensor] = []
            for k, state in route:
                stream = in_dtype(state, _dtype(model))
                if len(taps) < len(adapter.layers) and k == adapter.layers[len(taps)]:
                    taps.append(stream.hidden)
            gathered.append(adapter.gather(taps, stream.hidden))
            states.append(stream.hidden)
            streams.append(stream.replace(hidden=None))
            del taps, stream, state
        maps, last = [torch.cat(column) for column in zip(*gathered, strict=True)], torch.cat(states)
        sizes = [len(state) for state in states]
        del gathered, states
    merged = _merge_all(adapter, maps, last, tap_dtype)
    conditions = Conditions(last.device, random=False)
    pieces = [LatePiece(stream, conditions) for stream in streams]

    def late(piece: LatePiece, state: Tensor) -> Tensor:
        return run_blocks(model.base, piece.stream.replace(hidden=state), model.stop, model.base.depth).hidden

    chunks = merged.split(sizes)
    if adapter.late:
        with torch.no_grad():
            outputs = [late(piece, chunk) for piece, chunk in zip(pieces, chunks, strict=True)]
        chunks = attach(late, pieces, outputs, chunks)
    return [stream.replace(hidden=chunk) for stream, chunk in zip(streams, chunks, strict=True)], None


def _merge_all(adapter: Adapter, maps: list[Tensor], last: Tensor, tap_dtype: TapDtype) -> Tensor:
    piece = Piece(tap_dtype, Conditions(last.device, adapter.training))
    with torch.no_grad():
        merged = adapter.merge_gathered(maps, last)
    if torch.is_grad_enabled():
        for state in (*maps, last):
            piece.add(Stream(state))
        piece.close()

    def second_run(piece: Piece) -> Tensor:
        *maps, last = (stream.hidden for stream in piece.open())
        with spare_buffers(adapter):  # batch norm has counted this batch before
            return adapter.merge_gathered(maps, last)

    return attach(second_run, [piece], [merged], owner=adapter)[0]


@contextlib.contextmanager
def spare_buffers(module: nn.Module) -> Iterator[None]:
    """Within it, what ``module`` writes into its buffers goes into copies that are thrown away."""
    own = [(owner, dict(owner._buffers)) for owner in module.modules()]
    for owner, buffers in own:
        owner._buffers.update((name, None if buffer is None else buffer.clone()) for name, buffer in buffers.items())
    try:
        yield
    finally:
        for owner, buffers in own:
            owner._buffers.update(buffers)


# --- the graph ---


def attach(
    second_run: Callable[..., Tensor],
    pieces: list[Any],
    outputs: list[Tensor],
    inputs: Sequence[Tensor] | None = None,
    owner: nn.Module | None = None,
) -> tuple[Tensor, ...]:
    """Hang ``outputs``, made without a graph, into one whose backward makes each of them again.

    The graph can be gone through once: backward lets go of the pieces.

    Args:
        second_run: (piece[, input]) -> the output again, with gradient.
        pieces: one for each output, with its ``conditions``.
        outputs: from the first run; without gradient enabled they are returned as they are.
        inputs: one for each output, if the gradient passes on to them.
        owner: whose parameters get a gradient.
    """
    if not torch.is_grad_enabled():
        return tuple(outputs)
    parameters = [p for p in owner.parameters() if p.requires_grad] if owner is not None else []
    return _Again.apply(second_run, pieces, outputs, len(inputs or ()), *(inputs or ()), *parameters)


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        second_run: Callable[..., Tensor],
        pieces: list[Any],
        outputs: list[Tensor],
        inputs: int,
        *leaves: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.second_run, ctx.pieces, ctx.inputs = second_run, pieces, inputs
        ctx.save_for_backward(*leaves)  # parameters, too: a change before backward would be noticed
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        if ctx.pieces is None:
            raise RuntimeError("the lean route frees what it kept as backward goes along: it can be taken only once")
        saved = ctx.saved_tensors  # once: inside torch's checkpoint a second look is an error
        inputs, parameters = saved[: ctx.inputs], saved[ctx.inputs :]
        pieces, ctx.pieces = ctx.pieces, None
        found: list[Tensor | None] = [None] * (len(inputs) + len(parameters))
        for i, gradient in enumerate(gradients):
            piece, pieces[i] = pieces[i], None
            if gradient is None:
                continue
            own = [inputs[i].detach().requires_grad_()] if inputs else []
            with torch.enable_grad(), piece.conditions.again():
                output = ctx.second_run(piece, *own)
            del piece
            news = list(torch.autograd.grad(output, [*own, *parameters], gradient, allow_unused=True))
            del output
            if own:
                found[i] = news.pop(0)
            for place, new in enumerate(news, start=len(inputs)):
                if new is not None:
                    found[place] = new if found[place] is None else found[place].add_(new)
            del news
        return None, None, None, None, *found
