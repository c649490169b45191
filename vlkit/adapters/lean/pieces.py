"""What a second run needs: the taps of a chunk, packed or read again, and the conditions of the first run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vlkit.adapters.lean.opened import saved_packed
from vlkit.adapters.lean.replay import Replay
from vlkit.encoders.staged import Stream
from vlkit.number_formats import Packed

Route = Iterable[tuple[int | None, Stream]]
"""The early route of a chunk, yielded block by block: (tap number or None, stream); the last one is the hand-off."""

TapFormat = Literal["auto", "fp32", "bf16", "int8"]
"""Number format of saved taps; auto: bf16, and in double precision the taps as they are."""


@runtime_checkable
class Projects(Protocol):
    """An adapter whose ``reduce`` begins with a linear map of the tap's hidden state."""

    def projection(self, index: int) -> nn.Linear:
        """The linear map of tap number ``index``."""
        ...

    def reduce_projected(self, index: int, projected: Tensor) -> Any:
        """The rest of ``reduce``: ``reduce(i, tap) == reduce_projected(i, projection(i)(tap.hidden))``."""
        ...


def packed_as(hidden: Tensor, tap_dtype: TapFormat) -> Tensor | Packed:
    """``hidden`` as it is saved."""
    if tap_dtype == "auto":
        tap_dtype = "fp32" if hidden.dtype == torch.float64 else "bf16"
    return hidden if tap_dtype == "fp32" else Packed(hidden, tap_dtype)


def dtype_of(adapter: Any) -> torch.dtype | None:
    """The dtype of adapter and late route; a cache may store taps in a different one. None: without parameters."""
    return next((p.dtype for p in adapter.parameters()), None)


def cast_to(stream: Stream, dtype: torch.dtype | None) -> Stream:
    """The stream in ``dtype``; None: as it is."""
    return stream if dtype is None else stream.to(dtype)


class Piece:
    """The states of a chunk, packed when they are added.

    Args:
        tap_dtype: number format of the saved states.
        conditions: conditions of the first run.
    """

    _tap_dtype: TapFormat

    def __init__(self, tap_dtype: TapFormat, conditions: Conditions) -> None:
        self._tap_dtype, self.conditions = tap_dtype, conditions
        self._streams: list[tuple[Stream, Tensor | Packed]] = []
        self._newest: Tensor | None = None

    def add(self, stream: Stream) -> None:
        """Save ``stream``; a state that is the same tensor as the last one is not saved twice."""
        hidden = stream.hidden
        packed = self._streams[-1][1] if hidden is self._newest else packed_as(hidden, self._tap_dtype)
        self._newest = hidden
        self._streams.append((stream.replace(hidden=None), packed))

    def reduce(self, index: int, stream: Stream, adapter: Any, dtype: torch.dtype | None) -> Any:
        """Save tap number ``index`` and reduce it, without a graph."""
        self.add(stream)
        return adapter.reduce(index, cast_to(stream, dtype))

    def reduce_again(self, index: int, adapter: Any, dtype: torch.dtype | None) -> Any:
        """Reduce tap number ``index`` with a graph."""
        return self.read(index, partial(adapter.reduce, index), dtype)

    def close(self) -> None:
        """Drop the reference to the newest unpacked state."""
        self._newest = None

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, place: int, dtype: torch.dtype | None = None) -> Stream:
        """The stream that was added at ``place``, in ``dtype`` (default: its own)."""
        stream, packed = self._streams[place]
        return cast_to(stream.replace(hidden=packed.open() if isinstance(packed, Packed) else packed), dtype)

    def read(self, place: int, function: Callable[[Stream], Any], dtype: torch.dtype | None = None) -> Any:
        """``function`` of a stream; where it would save the opened state for backward, it saves the packed one."""
        stream, packed = self._streams[place]
        if not isinstance(packed, Packed):
            return function(self.open(place, dtype))
        opened = packed.open(dtype)
        with saved_packed(opened, packed):
            return function(stream.replace(hidden=opened))


class CachedPiece(Piece):
    """A chunk of cached taps. They are opened again from their rows instead of being saved.

    What is saved is what would take time: the output of each reducer's linear map, if the adapter tells it apart
    (:class:`Projects`). Without the early route, computing these maps again would be a quarter of the step.

    Args:
        replay: the chunk's route.
        tap_dtype: number format of what is saved.
        conditions: conditions of the first run.
    """

    def __init__(self, replay: Replay, tap_dtype: TapFormat, conditions: Conditions) -> None:
        super().__init__(tap_dtype, conditions)
        self._replay = replay
        self._projected: list[Tensor | Packed] = []

    def add(self, stream: Stream) -> None:
        """Save nothing: the rows are still there."""

    def reduce(self, index: int, stream: Stream, adapter: Any, dtype: torch.dtype | None) -> Any:
        """Reduce tap number ``index`` without a graph, and save its projection."""
        tap = cast_to(stream, dtype)
        if not isinstance(adapter, Projects):
            return adapter.reduce(index, tap)
        projected = adapter.projection(index)(tap.hidden)
        self._projected.append(packed_as(projected, self._tap_dtype))
        return adapter.reduce_projected(index, projected)

    def reduce_again(self, index: int, adapter: Any, dtype: torch.dtype | None) -> Any:
        """Reduce tap number ``index`` with a graph that begins at its projection."""
        if not isinstance(adapter, Projects):
            return adapter.reduce(index, self.open(index, dtype))
        saved = self._projected[index]
        projected = saved.open() if isinstance(saved, Packed) else saved
        return _reduce_projected(index, projected, adapter, lambda: self.open(index, dtype).hidden)

    def __len__(self) -> int:
        return len(self._replay)

    def open(self, place: int, dtype: torch.dtype | None = None) -> Stream:
        """The stream at ``place``, read again from its row."""
        return cast_to(self._replay.open(place), dtype)


def reduce_opened(index: int, stream: Stream, adapter: Projects, replay: Replay, dtype: torch.dtype | None) -> Any:
    """Reduce tap number ``index`` of cached taps with a graph that saves no tap: backward opens it again."""
    with torch.no_grad():
        projected = adapter.projection(index)(cast_to(stream, dtype).hidden)
    return _reduce_projected(index, projected, adapter, lambda: cast_to(replay.open(index), dtype).hidden)


def _reduce_projected(index: int, projected: Tensor, adapter: Projects, tap: Callable[[], Tensor]) -> Any:
    linear = adapter.projection(index)
    return adapter.reduce_projected(index, _Known.apply(projected, tap, linear.weight, linear.bias))


def piece_for(route: Route, tap_dtype: TapFormat, conditions: Conditions) -> Piece:
    """What saves the inputs of a second run of ``route``."""
    return CachedPiece(route, tap_dtype, conditions) if isinstance(route, Replay) else Piece(tap_dtype, conditions)


class _Known(torch.autograd.Function):
    """``x W^T + b`` whose value is known already; backward opens ``x`` for the gradient of W."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Callable[[], Tensor], weight: Tensor, bias: Tensor) -> Tensor:
        ctx.x = x
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor, Tensor]:
        rows = gradient.flatten(0, -2)
        return None, None, rows.T @ ctx.x().to(rows.dtype).flatten(0, -2), rows.sum(0)


class LatePiece(NamedTuple):
    """Inputs of a second run of the late route, besides the merged state."""

    stream: Stream
    conditions: Conditions


class Conditions:
    """A snapshot of random state and autocast settings that can be restored later.

    Args:
        device: device of the computation.
        random: whether the computation draws random numbers.
    """

    def __init__(self, device: torch.device, random: bool) -> None:
        self._device, self._states = device, None
        self._autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        if random:
            on_cuda = device.type == "cuda"
            self._states = torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_cuda else None

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Restore the snapshot inside the context; on exit, the random state is what it was before."""
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
