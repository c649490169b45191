"""Taps as rows of bytes: the layout of a tower's early route for one sample, and batches of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkit.encoders.staged import ReadAhead, StagedEncoder, Stream
from vlkit.number_formats import Stored, bytes_of, from_bytes, to_bytes

# The base's own embedding is computed from the state at the hand-off, so its rounding would dominate the loss error.
FINER = {"fp32": "fp32", "bf16": "fp32", "int8": "bf16"}
ALIGN = 8  # bytes; every part starts at a multiple, so that it can be viewed in its own dtype


@dataclass(frozen=True)
class Part:
    """One tensor of a row.

    Attributes:
        shape: shape per unit (a token, or the whole sample).
        stored: number format of its values; ``"bool"`` for a mask.
        dtype: name of the torch dtype after reading.
        offset: first byte in the unit.
        size: bytes in the unit, without padding.
    """

    shape: tuple[int, ...]
    stored: Stored | Literal["bool"]
    dtype: str
    offset: int
    size: int

    def encode(self, x: Tensor) -> Tensor:
        """Values [B, U, *shape] -> bytes [B, U, size] uint8."""
        return to_bytes(x.flatten(2), self.stored)

    def decode(self, data: Tensor) -> Tensor:
        """Bytes of whole units [B, U, unit] -> values [B, U, *shape]."""
        data = data[:, :, self.offset : self.offset + self.size]
        values = from_bytes(data, math.prod(self.shape), self.stored, getattr(torch, self.dtype))
        return values.unflatten(2, self.shape)


@dataclass(frozen=True)
class RowLayout:
    """The byte layout of a row.

    A row is a sequence of units of equal size. If padding can be trimmed (:attr:`variable`), a unit is a token and a
    row is as long as its text; otherwise the whole sample is one unit. The state at the hand-off is stored in the next
    finer format.

    Attributes:
        variable: whether a unit is a token.
        unit: bytes per unit.
        parts: the tensors of a unit; the mask, if any, comes last.
        taps: number of the part of each tap.
        last: number of the part of the state at the hand-off.
        masked: whether there is a mask.
        summarised: whether the tower has a summary position.
    """

    variable: bool
    unit: int
    parts: tuple[Part, ...]
    taps: tuple[int, ...]
    last: int
    masked: bool
    summarised: bool

    @classmethod
    def of(
        cls, stream: Stream, taps: Sequence[Stream], stored: Stored, variable: bool, even: bool = False
    ) -> RowLayout:
        """The layout for a result of :meth:`vlkit.adapters.base.AdaptedEncoder.read`.

        ``even``: the state at the hand-off is stored like the taps, because nothing is computed from it.
        """
        tensors, numbers = _tensors(stream, taps, variable)
        parts, offset = [], 0
        for number, state in enumerate(tensors):
            shape, own = tuple(state.shape[2:]), FINER[stored] if number == numbers[-1] and not even else stored
            kind: Any = "bool" if state.dtype == torch.bool else own
            part = Part(shape, kind, str(state.dtype).removeprefix("torch."), offset, bytes_of(math.prod(shape), kind))
            parts.append(part)
            offset += part.size + -part.size % ALIGN
        summarised = stream.summary is not None
        return cls(variable, offset, tuple(parts), numbers[:-1], numbers[-1], stream.mask is not None, summarised)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def encode(self, stream: Stream, taps: Sequence[Stream]) -> tuple[Tensor, Tensor, Tensor]:
        """Encode the output of the early route for a batch as rows.

        Returns:
            Bytes [B, U, unit] uint8, units of each row [B] int64, summary positions [B] int64 (-1: none); on the CPU.
        """
        tensors, _ = _tensors(stream, taps, self.variable)
        coded = []
        for part, state in zip(self.parts, tensors, strict=True):
            coded.append(F.pad(part.encode(state), (0, -part.size % ALIGN)))
        data, count = torch.cat(coded, dim=2), len(stream.hidden)
        units = torch.ones(count, dtype=torch.int64)
        if self.variable:
            positions = torch.arange(1, data.shape[1] + 1, device=data.device)
            units = (cast(Tensor, stream.mask) * positions).amax(1).clamp_min(1).cpu()
        summary = torch.full((count,), -1) if stream.summary is None else stream.summary.cpu()
        return data.cpu(), units, summary


def _tensors(stream: Stream, taps: Sequence[Stream], variable: bool) -> tuple[list[Tensor], tuple[int, ...]]:
    """The distinct tensors of a row, each [B, U, ...], the mask last.

    Returns:
        The tensors, and the index in that list of each tap and of the state at the hand-off.
    """
    found: list[Tensor] = []
    numbers = []
    for state in (*(tap.hidden for tap in taps), stream.hidden):
        number = next((i for i, other in enumerate(found) if other is state), len(found))
        found += [state] if number == len(found) else []
        numbers.append(number)
    if stream.mask is not None:
        found.append(stream.mask.unsqueeze(2) if variable else stream.mask)
    return found if variable else [tensor.unsqueeze(1) for tensor in found], tuple(numbers)


class TapBatch(ReadAhead):
    """A batch of one tower's rows, in place of its input; for missing rows it carries the tower's input.

    Attributes:
        cache: name of its cache.
        rows: row number of each example, [B].
        data: [B, U, unit] uint8, zero after the end of a row; if rows are missing, None until
            :meth:`vlkit.tap_cache.maker.TapCache.complete`.
        units: [B] int64, units of each row.
        summary: [B] int64; None if the tower has no summary position.
        missing: distinct row numbers that were not on disk when the batch was built.
        inputs: the tower's input for the missing rows.
        also: further rows to compute at the same time.
        ids: [B, L], for text towers whose late blocks need masks computed from the ids.
        extras: inputs of the late blocks of other towers.
    """

    data: Any = None  # a Tensor once it is read, as units
    units: Any = None
    summary: Tensor | None = None
    inputs: Any = None
    ids: Tensor | None = None
    extras: dict[str, Any] | None = None
    _tensors = ("data", "units", "summary", "inputs", "ids")

    def __init__(self, cache: str, layout: RowLayout, rows: list[int]) -> None:
        self.cache, self.layout, self.rows = cache, layout, rows
        self.missing: list[int] = []
        self.also: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def values(self) -> int:
        """Number of values in one sample's state at the hand-off."""
        return self.data.shape[1] * math.prod(self.layout.parts[self.layout.last].shape)

    @property
    def device(self) -> torch.device:
        """Device of the rows."""
        return self.data.device

    def _with(self, change: Any) -> TapBatch:
        """A copy with ``change`` applied to every tensor."""
        other = TapBatch(self.cache, self.layout, self.rows)
        other.__dict__.update(self.__dict__)
        for name in self._tensors:
            if isinstance(getattr(self, name), Tensor):
                setattr(other, name, change(getattr(self, name)))
        return other

    def to(self, device: Any, **options: Any) -> TapBatch:
        """Copy the batch to another device."""
        return self._with(lambda tensor: tensor.to(device, **options))

    def pin_memory(self) -> TapBatch:
        """Copy the batch to page-locked memory."""
        return self._with(lambda tensor: tensor.pin_memory())

    def pick(self, places: Tensor) -> TapBatch:
        """The examples at ``places`` [n] int64 of a complete batch."""
        part = self._with(lambda tensor: tensor.index_select(0, places.to(tensor.device)))
        part.rows = [self.rows[place] for place in places.tolist()]
        return part

    def split(self, size: int) -> list[TapBatch]:
        """Split a complete batch into parts of ``size`` examples, like :meth:`torch.Tensor.split`."""
        parts = []
        for start in range(0, len(self), size):
            part = self._with(lambda tensor, start=start: tensor[start : start + size])
            part.rows = self.rows[start : start + size]
            parts.append(part)
        return parts

    def streams(self, base: StagedEncoder) -> Sequence[Stream]:
        """The output of the early route, in the tower's own precision: the taps, then the stream at the hand-off."""
        extras = dict(self.extras or {}) if self.ids is None else late_extras(base, self.ids)
        mask = None
        if self.layout.masked:
            mask = self.layout.parts[-1].decode(self.data)
            mask = mask.squeeze(2) if self.layout.variable else mask.squeeze(1)
        return _Streams(self, Stream(torch.empty(0), mask, self.summary, extras))


class _Streams(Sequence[Stream]):
    """The taps of a batch and the hand-off, each decoded on access, so that not all of them are in memory at once."""

    def __init__(self, batch: TapBatch, frame: Stream) -> None:
        self.batch, self.frame = batch, frame
        self.numbers = (*batch.layout.taps, batch.layout.last)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Stream:
        hidden = self.batch.layout.parts[self.numbers[index]].decode(self.batch.data)
        return self.frame.replace(hidden=hidden if self.batch.layout.variable else hidden.squeeze(1))


@torch.no_grad()
def late_extras(base: StagedEncoder, x: Tensor) -> dict[str, Any]:
    """The extras of the late blocks for input ``x``, without running the blocks in between.

    They exist before block 0, except in towers whose block 0 computes a value for all later blocks (T5's position
    bias).
    """
    stream = base.embed(x)
    arguments = stream.extras.get("arguments", {})
    if arguments.get("position_bias", x) is None:
        stream = base.block(0, stream)
    return stream.extras
