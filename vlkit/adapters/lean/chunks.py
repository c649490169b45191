"""How many samples run through the early route at once.

Samples are independent in a frozen tower, so chunks change no number. Small ones need less memory; too small ones leave
the processor idle between operations.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from vlkit.encoders.staged import ReadAhead, StagedEncoder, Stream, in_weights_format

EarlyChunk = int | Literal["auto"]
"""Samples at once; 0 = the whole batch; ``"auto"`` = as few as keep the processor busy."""

# Values of a chunk's hidden state that keep a processor busy: 16 samples of a ViT-B-32 on a CPU, 150 on a GPU.
BUSY = {"cpu": 640_000, "cuda": 6_000_000}
LATE = 0.5
FEWEST = 4


class Chunker:
    """Cuts batches for one tower.

    Args:
        base: the tower.
        size: see :data:`EarlyChunk`.
        late: a chunk goes through adapter and late route in backward, too, and takes more memory there than in the
            early route: automatic chunks are smaller.
    """

    def __init__(self, base: StagedEncoder, size: EarlyChunk, late: bool = False) -> None:
        if size != "auto" and size < 0:
            raise ValueError(f"chunks of {size} samples: give 1 or more, 0 for the whole batch, or 'auto'")
        self.base, self.size, self.late = base, size, late
        self._values: dict[tuple[int, ...], int] = {}

    def split(self, x: Any) -> list[Any]:
        """Cut ``x`` [B, ...] into chunks of nearly equal size; what is no tensor stays whole."""
        if not isinstance(x, Tensor | ReadAhead) or len(x) < 2:
            return [x]
        return list(x.split(even(len(x), self.samples(x))))

    def samples(self, x: Tensor | ReadAhead) -> int:
        """Samples at once for a batch like ``x`` [B, ...]."""
        if self.size != "auto":
            return self.size or len(x)
        if isinstance(x, ReadAhead):
            return busy_samples(x.values, x.device)
        shape = (*x.shape[1:],)
        if shape not in self._values:
            with torch.no_grad():
                self._values[shape] = self.base.embed(in_weights_format(self.base, x[:1])).hidden.numel()
        return busy_samples(self._values[shape], x.device, self.late)

    def slices(self, stream: Stream) -> list[slice]:
        """The same cuts of a batch whose early route is done already."""
        hidden = stream.hidden
        size = self.size or len(hidden)
        if size == "auto":
            size = busy_samples(hidden[:1].numel(), hidden.device, self.late)
        size = even(len(hidden), size)
        return [slice(start, start + size) for start in range(0, len(hidden), size)] or [slice(0, 0)]


def busy_samples(values: int, device: torch.device, late: bool = False) -> int:
    """Samples with ``values`` numbers each in their hidden state that keep ``device`` busy."""
    busy = BUSY.get(device.type, BUSY["cuda"]) * (LATE if late else 1)
    return max(FEWEST, int(busy) // max(1, values))


def even(count: int, size: int) -> int:
    """The chunk size of at most ``size`` that cuts ``count`` samples most evenly."""
    chunks = max(1, -(-count // size))
    return max(1, -(-count // chunks))


def samples_of(stream: Stream, at: slice) -> Stream:
    """The samples ``at`` of a stream, without its extras: those are the tower's own business."""
    mask, summary = stream.mask, stream.summary
    return Stream(stream.hidden[at], None if mask is None else mask[at], None if summary is None else summary[at])


def in_dtype(stream: Stream, dtype: torch.dtype) -> Stream:
    """The stream with its state in ``dtype``."""
    return stream if stream.hidden.dtype == dtype else stream.replace(hidden=stream.hidden.to(dtype))
