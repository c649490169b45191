"""A pool of drawn samples on the training device: each is used several times, with new shift, zoom and tint.

On a GPU machine drawing is the bottleneck: processes draw as fast as they can, and the pool stores the samples.
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
"""Captions per drawn scene; each use takes one of them."""
SHIFT, ZOOM, CONTRAST, BRIGHTNESS, NOISE = 0.05, 0.06, 0.15, 0.08, 0.03
"""Largest augmentation per use: shift in half images; zoom, contrast, brightness and noise as shares of 1."""


@dataclass(frozen=True)
class Batch:
    """The batch of one step.

    Attributes:
        images: float32 [B, 3, 96, 96], 0 to 1.
        ids: uint8 [B, 48, 48]; 0 = background, i + 1 = object i.
        codes: int64 [B, things] from :func:`vlkit.drawn.styled_samples.thing_code`; -1 = no object.
        captions: int64 [B, L].
        seed: seed of the objective's random choices.
    """

    images: Tensor
    ids: Tensor
    codes: Tensor
    captions: Tensor
    seed: int


class Pool:
    """A ring buffer of samples on a device.

    Args:
        capacity: most samples it holds; beyond that, new samples replace the oldest.
        device: device of the pool. tokenize: texts -> int64 [n, L].

    Attributes:
        drawn: index of the next sample of the stream.
        filled: number of samples in the pool.
    """

    def __init__(self, capacity: int, device: torch.device, tokenize: Callable[[list[str]], Tensor]) -> None:
        self.capacity, self.device, self.tokenize = capacity, device, tokenize
        self.drawn = 0
        self.filled = self._next = 0
        self._tensors: list[Tensor] = []

    def begin(self, number: int) -> None:
        """Empty the pool; the next sample has index ``number`` in the stream and the slot it would have in a long
        run.
        """
        self.drawn, self.filled, self._next = number, 0, number % self.capacity

    def add(self, chunk: list[Tensor]) -> None:
        """Add a chunk (:func:`collated`)."""
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
        """Distinct random samples; a function of the pool's content and ``seed``."""
        rng = torch.Generator(self.device).manual_seed(seed)
        filled = self.filled
        if filled <= 4 * size:
            rows = torch.randperm(filled, generator=rng, device=self.device)[:size]
        else:
            # One row per stratum: distinct rows without permuting the whole pool.
            start = torch.arange(size, device=self.device) * filled // size
            stop = (torch.arange(size, device=self.device) + 1) * filled // size
            rows = start + (torch.rand(size, generator=rng, device=self.device) * (stop - start)).long()
        images, ids, codes, captions = (tensor[rows] for tensor in self._tensors)
        which = torch.randint(captions.shape[1], (size,), generator=rng, device=self.device)
        texts = captions[torch.arange(size, device=self.device), which].long()
        pixels, ids = varied(images.permute(0, 3, 1, 2).float() / 255, ids, rng)
        return Batch(pixels, ids, codes.long(), texts, seed)


def varied(pixels: Tensor, ids: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images [B, 3, H, W] (0 to 1) slightly shifted, zoomed, tinted and noisy, with ids [B, h, w] moved alike."""
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
    """Prepares a chunk for the pool, in the process that drew it: captions become int16 ids."""

    def __init__(self, tokenize: Callable[[list[str]], Tensor]) -> None:
        self.tokenize = tokenize

    def __call__(self, chunks: list[tuple[Tensor, Tensor, Tensor, list[tuple[str, ...]]]]) -> list[Tensor]:
        images, ids, codes, captions = chunks[0]
        flat = self.tokenize([text for texts in captions for text in texts]).to(torch.int16)
        return [images, ids, codes, flat.reshape(len(captions), -1, flat.shape[1])]


def chunk_loader(chunks: Dataset, tokenize: Callable[[list[str]], Tensor], workers: int) -> DataLoader:
    """Chunks in order, drawn by ``workers`` processes (0 = by this process)."""
    return DataLoader(
        chunks, 1, num_workers=workers, collate_fn=Collate(tokenize), prefetch_factor=4 if workers else None
    )


def batches(pool: Pool, seed: int, size: int, reuse: int, workers: int, first_step: int, steps: int) -> Iterator[Batch]:
    """Batches of steps ``first_step`` .. ``steps`` - 1: each step adds ``size / reuse`` new samples to the pool and
    takes a batch from it. Step n depends only on n and the arguments: samples from before ``first_step`` are drawn
    again.
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
    """Endless batches from the samples drawn so far; drawing continues during training."""
    chunks = StyledChunks(seed, TRAIN, 2**31 // chunk, chunk, pool.drawn, captions=CAPTIONS)
    # Processes are forked here, not in the thread: a fork beside other threads can copy a held lock.
    arriving = iter(chunk_loader(chunks, pool.tokenize, workers))
    ready: queue.Queue[list[Tensor]] = queue.Queue(maxsize=16)
    stop = threading.Event()

    def fetch() -> None:
        for drawn in arriving:
            while not stop.is_set():
                try:
                    # A copy from pinned memory to the GPU overlaps with computation.
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
                raise RuntimeError("the drawing processes have stopped") from None
