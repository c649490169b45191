"""Frames of a batch of videos, kept as bytes in host memory until a model needs them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Frames:
    """B videos with up to T frames each, F frames in all, without padding.

    It has no ``to``: moving a batch to a device leaves the frames on the host, from where a model takes them in chunks.

    Attributes:
        pixels: [F, 3, H, W] uint8, video after video.
        mask: [B, T] bool, True = real frame; real frames come first.
        rows: [B, T] int64, the row of ``pixels`` of each frame; 0 where there is none.
    """

    def __init__(self, pixels: Tensor, mask: Tensor) -> None:
        self.pixels, self.mask = pixels, mask
        self.rows = (mask.flatten().cumsum(0).view_as(mask) - 1).masked_fill(~mask, 0)

    @classmethod
    def of(cls, videos: Sequence[Tensor]) -> Frames:
        """From the frames of each video, [t, 3, H, W] uint8 with t >= 1."""
        counts = torch.tensor([len(video) for video in videos])
        return cls(torch.cat(list(videos)), torch.arange(int(counts.max())) < counts.unsqueeze(1))

    def __len__(self) -> int:
        """F."""
        return len(self.pixels)

    def chunks(self, size: int = 0) -> tuple[Tensor, ...]:
        """The pixels in parts of ``size`` frames; 0 = in one."""
        return self.pixels.split(size or len(self))

    def videos(self) -> list[Frames]:
        """Each video as a batch of its own."""
        return [Frames.of([pixels]) for pixels in self.pixels.split(self.mask.sum(1).tolist())]

    def pin_memory(self) -> Frames:
        """A copy in pinned memory (the data loader requests it for batches that go to CUDA)."""
        pinned = Frames(self.pixels.pin_memory(), self.mask.pin_memory())
        pinned.rows = pinned.rows.pin_memory()
        return pinned
