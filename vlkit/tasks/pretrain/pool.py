"""A pool of drawn samples on the training device: each is used several times, shifted, scaled and tinted anew.

Drawing is the slow part on a GPU machine: processes draw as fast as they can, the pool keeps what they have drawn.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlkit.drawn.styled_samples import TRAIN, StyledChunks

CAPTIONS = 2
"""Captions of each drawn scene; every use takes one of them."""
SHIFT, ZOOM, CONTRAST, BRIGHTNESS, NOISE = 0.05, 0.06, 0.15, 0.08, 0.03
"""Largest changes of a use: shifts in half images, zoom, contrast, brightness and noise in shares of 1."""


@dataclass(frozen=True)
class Batch:
    """What a step trains on.

    Attributes:
        images: float32 [B, 3, 96, 96], 0 to 1.
        ids: uint8 [B, 48, 48]; 0 = ground, i + 1 = thing i.
        codes: int64 [B, things], of :func:`vlkit.drawn.styled_samples.thing_code`; -1 = no thing.
        captions: int64 [B, L].
        seed: of choices that the objective makes.
    """

    images: Tensor
    ids: Tensor
    codes: Tensor
    captions: Tensor
    seed: int


class Pool:
    """A ring of samples on a device.

    Args:
        capacity: samples it holds; then new ones replace the oldest.
        device: where.
        tokenize: texts -> int64 [n, L].

    Attributes:
        drawn: number of the next sample of the stream.
        filled: samples in the pool.
    """

    def __init__(self, capacity: int, device: torch.device, tokenize: Callable[[list[str]], Tensor]) -> None:
        self.capacity, self.device, self.tokenize = capacity, device, tokenize
        self.drawn = 0
        self.filled = self._next = 0
        self._tensors: list[Tensor] = []

    def begin(self, number: int) -> None:
        """Forget what is there; the next sample is ``number`` of the stream and lies where it would in a long run."""
        self.drawn, self.filled, self._next = number, 0, number % self.capacity

    def add(self, chunk: list[Tensor]) -> None:
        """Put a chunk (:func:`collated`) in."""
        if not self._tensors:
            self._tensors = [torch.empty(self.capacity, *t.shape[1:], dtype=t.dtype, device=self.device) for t in chunk]
        at = self._next
        self._next = (at + len(chunk[0])) % self.capacity
        room = self.capacity - at
        for tensor, new in zip(self._tensors, chunk, strict=True):
            tensor[at : at + len(new)] = new[:room].to(self.device, non_blocking=True)
            if len(new) > room:
                tensor[: len(new) - room] = new[room:].to(self.device)
        self.drawn += len(chunk[0])
        self.filled = min(self.filled + len(chunk[0]), self.capacity)

    def batch(self, size: int, seed: int) -> Batch:
        """Different samples at random; a function of what is in the pool and ``seed``."""
        rng = torch.Generator(self.device).manual_seed(seed)
        filled = self.filled
        if filled <= 4 * size:
            rows = torch.randperm(filled, generator=rng, device=self.device)[:size]
        else:
            # One of each stratum: different rows without a permutation of the whole pool.
            start = torch.arange(size, device=self.device) * filled // size
            stop = (torch.arange(size, device=self.device) + 1) * filled // size
            rows = start + (torch.rand(size, generator=rng, device=self.device) * (stop - start)).long()
        images, ids, codes, captions = (tensor[rows] for tensor in self._tensors)
        which = torch.randint(captions.shape[1], (size,), generator=rng, device=self.device)
        texts = captions[torch.arange(size, device=self.device), which].long()
        pixels, ids = varied(images.permute(0, 3, 1, 2).float() / 255, ids, rng)
        return Batch(pixels, ids, codes.long(), texts, seed)


def varied(pixels: Tensor, ids: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W] (0 to 1) a little shifted, zoomed, tinted and noisy, their ids [B, h, w] moved with them."""
    size, device = len(pixels), pixels.device

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(size, *shape, generator=rng, device=device) - 1

    moves = torch.zeros(size, 2, 3, device=device)
    moves[:, 0, 0] = moves[:, 1, 1] = 1 + ZOOM * uniform()
    moves[:, :, 2] = SHIFT * uniform(2)
    grid = F.affine_grid(moves, [size, 1, *pixels.shape[2:]], align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    coarse = F.affine_grid(moves, [size, 1, *ids.shape[1:]], align_corners=False)
    moved = F.grid_sample(ids.unsqueeze(1).float(), coarse, mode="nearest", align_corners=False).squeeze(1)
    tint = 1 + CONTRAST * uniform(1, 1, 1)
    light = BRIGHTNESS * (uniform(1, 1, 1) + 0.5 * uniform(3, 1, 1))
    pixels = (pixels - 0.5) * tint + 0.5 + light
    strength = NOISE * uniform(1, 1, 1).clamp(min=0)
    noise = torch.randn(pixels.shape, generator=rng, device=device)
    return (pixels + strength * noise).clamp(0, 1), moved.to(torch.uint8)


class Collate:
    """Makes a chunk ready for the pool, in the process that drew it: captions become int16 ids."""

    def __init__(self, tokenize: Callable[[list[str]], Tensor]) -> None:
        self.tokenize = tokenize

    def __call__(self, chunks: list[tuple[Tensor, Tensor, Tensor, list[tuple[str, ...]]]]) -> list[Tensor]:
        images, ids, codes, captions = chunks[0]
        flat = self.tokenize([text for texts in captions for text in texts]).to(torch.int16)
        return [images, ids, codes, flat.reshape(len(captions), -1, flat.shape[1])]


def chunk_loader(chunks: Dataset, tokenize: Callable[[list[str]], Tensor], workers: int) -> DataLoader:
    """Chunks in order, drawn by ``workers`` processes (0: by this one)."""
    return DataLoader(
        chunks, 1, num_workers=workers, collate_fn=Collate(tokenize), prefetch_factor=4 if workers else None
    )


def batches(pool: Pool, seed: int, size: int, reuse: int, workers: int, first_step: int, steps: int) -> Iterator[Batch]:
    """Batches of steps ``first_step`` .. ``steps`` - 1: each draws ``size / reuse`` new samples and takes what the pool
    has. Step n depends on the arguments and n alone: what the pool held before ``first_step`` is drawn again.
    """
    fresh = size // reuse
    behind = min(first_step, -(-pool.capacity // fresh))
    start = first_step - behind
    pool.begin(start * fresh)
    chunks = StyledChunks(seed, TRAIN, steps - start, fresh, start * fresh, captions=CAPTIONS)
    for step, chunk in enumerate(chunk_loader(chunks, pool.tokenize, workers), start=start):
        pool.add(chunk)
        if step >= first_step:
            yield pool.batch(min(size, pool.filled), seed * 1_000_003 + step)


def timed_batches(pool: Pool, seed: int, size: int, workers: int, first_step: int, chunk: int = 128) -> Iterator[Batch]:
    """Batches without end of whatever has been drawn by then; drawing goes on beside training."""
    chunks = StyledChunks(seed, TRAIN, 2**31 // chunk, chunk, pool.drawn, captions=CAPTIONS)
    # Processes are forked here, not in the thread: a fork beside other threads can copy a lock that is held.
    arriving = iter(chunk_loader(chunks, pool.tokenize, workers))
    ready: queue.Queue[list[Tensor]] = queue.Queue(maxsize=16)
    stop = threading.Event()

    def fetch() -> None:
        for drawn in arriving:
            while not stop.is_set():
                try:
                    # From pinned memory a copy to the GPU runs beside its work.
                    ready.put([t.pin_memory() for t in drawn] if pool.device.type == "cuda" else drawn, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if stop.is_set():
                return

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    step, begun = first_step, 0
    try:
        while True:
            while begun < 4 * size or not ready.empty():
                drawn = _next(ready, thread)
                pool.add(drawn)
                begun += len(drawn[0])
            yield pool.batch(size, seed * 1_000_003 + step)
            step += 1
    finally:
        stop.set()
        thread.join()


def _next(ready: queue.Queue[list[Tensor]], thread: threading.Thread) -> list[Tensor]:
    while True:
        try:
            return ready.get(timeout=1)
        except queue.Empty:
            if not thread.is_alive():
                raise RuntimeError("the processes that draw have stopped") from None
