"""Adapter and late route in little memory: only the taps are saved, everything behind them runs again in backward.

The first run is streamed and chunked: each tap is reduced and packed as soon as its layer is done, and no graph is
made. Backward opens one chunk's taps at a time, runs the chunk with gradient, adds its share to the gradients of the
weights, and lets go of the chunk. Random state, autocast and the adapter's buffers are those of the first run, so
dropout draws the same mask.

An adapter that mixes samples (batch norm) is merged for the whole batch at once; early and late route stay chunked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vlkit.encoders.staged import Stream
from vlkit.number_formats import NumberFormat, Packed

Route = Iterable[tuple[int | None, Stream]]
"""The early route of a chunk as it comes: (number of the tap or None, stream); the last stream is the hand-off."""


class Reducer(Protocol):
    """What this module needs to know of a method: a module with ``reduce``."""

    late: int
    training: bool
    reduce: Callable[[int, Stream], Any]
    parameters: Callable[[], Iterator[nn.Parameter]]
    modules: Callable[[], Iterator[nn.Module]]


class Behind(Protocol):
    """What follows an early route; see :class:`vlkit.adapters.base.AdaptedEncoder`."""

    adapter: Any  # a Reducer that is a module

    def rest(self, reduced: list[Any], stream: Stream) -> Stream:
        """From the reduced taps and the stream at the hand-off to the end."""
        ...

    def late(self, stream: Stream) -> Stream:
        """The last part of ``rest``: the late route."""
        ...


@runtime_checkable
class Coupled(Protocol):
    """An adapter that mixes the samples of a batch (batch norm), so that it needs the whole batch at once."""

    def gather(self, taps: list[Tensor], last: Tensor) -> list[Tensor]:
        """What of a chunk's raw taps ``merge_gathered`` needs; no weight is involved."""
        ...

    def merge_gathered(self, gathered: list[Tensor], last: Tensor) -> Tensor:
        """``merge`` for the whole batch, from what ``gather`` returned."""
        ...


class Lean:
    """Runs a route in chunks and saves packed taps alone.

    Args:
        chunk: samples at once; 0 = the whole batch, ``"auto"`` = as few as keep the processor busy.
        tap_dtype: number format of the saved taps. The forward is exact with any.
    """

    # A chunk also goes through adapter and late route in backward, and takes more memory there. On a GPU larger chunks
    # would be faster and give the memory away (docs/results/early_chunk_gpu.json): who wants that sets ``chunk``.
    busy: ClassVar[Mapping[str, int]] = {"cpu": 320_000, "cuda": 3_000_000}

    chunk: int | Literal["auto"]
    tap_dtype: NumberFormat

    def __init__(self, chunk: int | Literal["auto"] = "auto", tap_dtype: NumberFormat = "fp32") -> None:
        if chunk != "auto" and chunk < 0:
            raise ValueError(f"chunks of {chunk} samples: give 1 or more, 0 for the whole batch, or 'auto'")
        self.chunk, self.tap_dtype = chunk, tap_dtype

    def run(self, routes: Iterable[Route], model: Behind) -> list[Stream]:
        """The streams behind ``model.rest``, one for each chunk; see :class:`vlkit.adapters.base.Runner`."""
        if isinstance(model.adapter, Coupled):
            return self._coupled(routes, model)
        adapter: Any = model.adapter
        buffers = buffers_of(adapter)
        pieces, ends, outputs, field = [], [], [], "hidden"
        for route in routes:
            restore_(buffers)  # counters go on once a batch, not once a chunk
            piece, end = self._first_run(route, model)
            field = "hidden" if end.pooled is None else "pooled"
            pieces.append(piece)
            outputs.append(getattr(end, field))
            ends.append(end.replace(hidden=None, pooled=None))
            del end

        def second_run(piece: Piece) -> Tensor:
            *taps, stream = (stream.to(_dtype(adapter, stream)) for stream in piece.open())
            with lent(buffers):
                reduced = [adapter.reduce(i, tap) for i, tap in enumerate(taps)]
                return getattr(model.rest(reduced, stream), field)

        outputs = attach(second_run, pieces, outputs, owner=adapter)
        return [end.replace(**{field: output}) for end, output in zip(ends, outputs, strict=True)]

    def _first_run(self, route: Route, model: Behind) -> tuple[Piece | None, Stream]:
        """A chunk from start to end without a graph: what to save, and the stream at the end."""
        adapter, piece, reduced = model.adapter, None, []
        trains = torch.is_grad_enabled()
        with torch.no_grad():
            for number, stream in route:
                if trains and piece is None:
                    piece = Piece(self.tap_dtype, Conditions(stream.hidden.device, adapter.training))
                if number is not None:
                    if piece is not None:
                        piece.add(stream)
                    reduced.append(adapter.reduce(number, stream.to(_dtype(adapter, stream))))
            if piece is not None:
                piece.add(stream)
                piece.close()
            return piece, model.rest(reduced, stream.to(_dtype(adapter, stream)))

    # --- samples that meet in the adapter ---

    def _coupled(self, routes: Iterable[Route], model: Behind) -> list[Stream]:
        """Early route by chunks, the adapter on the whole batch, late route by chunks."""
        adapter: Any = model.adapter
        gathered, streams, states = [], [], []
        with torch.no_grad():
            for route in routes:
                taps: list[Tensor] = []
                for number, state in route:
                    stream = state.to(_dtype(adapter, state))
                    if number is not None:
                        taps.append(stream.hidden)
                gathered.append(adapter.gather(taps, stream.hidden))
                states.append(stream.hidden)
                streams.append(stream.replace(hidden=None))
                del taps, stream, state
            maps, last = [torch.cat(column) for column in zip(*gathered, strict=True)], torch.cat(states)
            sizes = [len(state) for state in states]
            del gathered, states
        chunks = self._merge_all(adapter, maps, last).split(sizes)
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
            *maps, last = (stream.hidden for stream in piece.open())
            with lent(buffers):  # batch norm has counted this batch before
                return adapter.merge_gathered(maps, last)

        return attach(second_run, [piece], [merged], owner=adapter)[0]


# --- what a second run starts from ---


class Piece:
    """The states of a chunk, packed as they come.

    Args:
        tap_dtype: number format.
        conditions: of the first run.
    """

    _tap_dtype: NumberFormat

    def __init__(self, tap_dtype: NumberFormat, conditions: Conditions) -> None:
        self._tap_dtype, self.conditions = tap_dtype, conditions
        self._streams: list[tuple[Stream, Tensor | Packed]] = []
        self._newest: Tensor | None = None

    def add(self, stream: Stream) -> None:
        """Save ``stream``; if its state is the one added last, that is not saved twice."""
        hidden = stream.hidden
        if hidden is self._newest:
            packed = self._streams[-1][1]
        else:
            packed = hidden if self._tap_dtype == "fp32" else Packed(hidden, self._tap_dtype)
        self._newest = hidden
        self._streams.append((stream.replace(hidden=None), packed))

    def close(self) -> None:
        """Let go of the newest state itself."""
        self._newest = None

    def open(self) -> list[Stream]:
        """The streams in the order they were added."""
        opened = ((stream, packed.open() if isinstance(packed, Packed) else packed) for stream, packed in self._streams)
        return [stream.replace(hidden=hidden) for stream, hidden in opened]


class LatePiece(NamedTuple):
    """What a second run of the late route starts from, besides the merged state."""

    stream: Stream
    conditions: Conditions


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


Buffers = list[tuple[nn.Module, dict[str, Tensor]]]
"""Modules, and copies of their buffers."""


def buffers_of(module: nn.Module) -> Buffers:
    """The buffers of ``module`` as they are now."""
    owned = ((m, {name: b.clone() for name, b in m._buffers.items() if b is not None}) for m in module.modules())
    return [(owner, buffers) for owner, buffers in owned if buffers]


def restore_(saved: Buffers) -> None:
    """Write the saved values back."""
    for owner, buffers in saved:
        for name, buffer in buffers.items():
            owner.get_buffer(name).copy_(buffer)


@contextlib.contextmanager
def lent(saved: Buffers) -> Iterator[None]:
    """Within it, modules work on copies of the saved buffers; what they write into those is thrown away."""
    own = [(owner, dict(owner._buffers)) for owner, _ in saved]
    for owner, buffers in saved:
        owner._buffers.update((name, buffer.clone()) for name, buffer in buffers.items())
    try:
        yield
    finally:
        for owner, buffers in own:
            owner._buffers.update(buffers)


def _dtype(adapter: Reducer, stream: Stream) -> torch.dtype:
    """The number format that adapter and late route work with; a cache may hold taps in another one."""
    return next((p.dtype for p in adapter.parameters()), stream.hidden.dtype)


# --- a graph whose backward makes its outputs again ---


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
                    old = found[place]
                    found[place] = new if old is None else old.add_(new)
                    del old
            del news
        return None, None, None, None, *found
