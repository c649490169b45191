"""Adapter and late route in little memory: only the taps are kept, everything behind them runs again in backward.

The first run is streamed and chunked: each tap is reduced and packed as soon as its layer is done, and no graph is
made. Backward opens one chunk's taps at a time, runs the chunk with gradient, adds its share to the gradients of the
weights, and lets go of the chunk. Random state and autocast are those of the first run, so dropout draws the same mask.

An adapter that mixes samples (batch norm) is merged for the whole batch at once; early and late route stay chunked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlkit.adapters.lean.chunks import in_dtype
from vlkit.adapters.lean.kept import Kept, TapDtype
from vlkit.adapters.lean.second_run import Conditions, attach
from vlkit.encoders.staged import Stream, run_blocks

if TYPE_CHECKING:
    from vlkit.adapters.base import AdaptedEncoder, Adapter

Route = Iterator[tuple[int, Stream]]
"""Depths and streams, as :func:`vlkit.encoders.staged.run_early` yields them."""
Finished = tuple[list[Stream] | Callable[[], list[Stream]], Tensor | None]
"""The streams after the last block, one a chunk, or what makes them; and the pooled embedding if it is made already."""


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
    return _run(model, lambda: map(model.route, chunks), tap_dtype)


def merged_again(model: AdaptedEncoder, stream: Stream, taps: list[Stream], tap_dtype: TapDtype) -> Finished:
    """The same for one batch whose early route is done: the stream at the hand-off, and the taps."""
    route = [*zip(model.adapter.layers, taps, strict=True), (-1, stream)]
    return _run(model, lambda: [iter(route)], tap_dtype)


def _run(model: AdaptedEncoder, routes: Callable[[], Iterable[Route]], tap_dtype: TapDtype) -> Finished:
    if model.adapter.coupled:
        return _coupled(model, routes(), tap_dtype)
    if not model.summary_only:
        return _independent(model, routes(), tap_dtype, False)
    conditions = Conditions(next(model.adapter.parameters()).device, model.adapter.training)

    def every_token() -> list[Stream]:
        with conditions.again():
            return _independent(model, routes(), tap_dtype, False)[0]

    return every_token, _independent(model, routes(), tap_dtype, True)[1]


def _independent(model: AdaptedEncoder, routes: Iterable[Route], tap_dtype: TapDtype, summary_only: bool) -> Finished:
    pieces, ends, outputs = [], [], []
    for route in routes:
        piece, end, output = _first_run(model, route, tap_dtype, summary_only)
        pieces.append(piece)
        ends.append(end)
        outputs.append(output)

    def second_run(piece: Piece) -> Tensor:
        *taps, stream = (in_dtype(stream, _dtype(model)) for stream in piece.open())
        reduced = [model.adapter.reduce(i, tap) for i, tap in enumerate(taps)]
        return _rest(model, reduced, stream, summary_only)[1]

    outputs = attach(second_run, pieces, outputs, owner=model.adapter)
    if model.adapter.handoff == "pooled" or summary_only:
        return ends, torch.cat(outputs)
    return [end.replace(hidden=output) for end, output in zip(ends, outputs, strict=True)], None


def _first_run(
    model: AdaptedEncoder, route: Route, tap_dtype: TapDtype, summary_only: bool
) -> tuple[Piece | None, Stream, Tensor]:
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
        end, output = _rest(model, reduced, in_dtype(stream, _dtype(model)), summary_only)
    return piece, end.replace(hidden=None) if adapter.handoff == "tokens" else end, output


def _dtype(model: AdaptedEncoder) -> torch.dtype:
    """The number format that adapter and late route work with; a cache may hold taps in another one."""
    return next(model.adapter.parameters()).dtype


def _rest(model: AdaptedEncoder, reduced: list[Any], stream: Stream, summary_only: bool) -> tuple[Stream, Tensor]:
    """Adapter and late route: the stream after the last block, and the output that carries gradient.

    With ``summary_only`` the output is the pooled embedding, and the stream is that in front of the last block.
    """
    if model.adapter.handoff == "pooled":
        with torch.no_grad():
            last = model.base.pool(stream)
        return stream, model.adapter.merge(reduced, last, stream)
    stream = stream.replace(hidden=model.adapter.merge(reduced, stream.hidden, stream))
    reduced.clear()
    if summary_only:
        stream = run_blocks(model.base, stream, model.stop, model.base.depth - 1)
        return stream, model.base.finish_pooled(stream)
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
