"""The tap cache for video clips: a row holds the frames of one clip, one unit per frame."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from vlkit.data.video.frame_batch import Frames
from vlkit.tap_cache.maker import TapCache
from vlkit.tap_cache.rows import TapBatch

FRAMES_AT_ONCE = 32


class ClipTapCache(TapCache):
    """A :class:`TapCache` whose samples are clips; ``load`` returns a list with frames [t, 3, H, W] uint8 per clip.

    :meth:`complete` returns :class:`vlkit.data.video.frame_batch.Frames` with one row of taps per frame as pixels.
    """

    chunk = 4  # clips; few, because each has many frames
    mean_frames: float | None = None
    """Frames per row, if known; otherwise the size is estimated from the largest number."""

    def complete(self, batch: TapBatch) -> Any:
        """Compute and store the missing rows of a batch; returns its frames with taps in place of pixels."""
        done = super().complete(batch)
        mask = torch.arange(int(done.units.max())) < done.units.unsqueeze(1)  # [B, T]
        rows = torch.tensor(done.rows).repeat_interleave(done.units).tolist()
        frames = TapBatch(done.cache, done.layout, rows)
        frames.data = done.data[mask].unsqueeze(1)  # [F, 1, unit]
        frames.units = torch.ones(len(frames), dtype=torch.int64)
        frames.extras = done.extras
        if done.summary is not None:
            frames.summary = done.summary.repeat_interleave(done.units)
        return Frames(cast(Any, frames), mask)

    @staticmethod
    def _first(inputs: list[Tensor]) -> list[Tensor]:
        return [clip[:2] for clip in inputs]

    def _encode(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        counts = [len(clip) for clip in inputs]
        parts = [self.layout.encode(*self._read(part)) for part in self._input(inputs).split(FRAMES_AT_ONCE)]
        data, _, summary = (torch.cat(column) for column in zip(*parts, strict=True))
        rows = torch.nn.utils.rnn.pad_sequence([part.squeeze(1) for part in data.split(counts)], batch_first=True)
        first = torch.tensor([0, *counts[:-1]]).cumsum(0)
        return rows, torch.tensor(counts), summary[first]

    def _input(self, clips: list[Tensor]) -> Tensor:
        pixels = self.fabric.to_device(torch.cat(clips)).float() / 255
        preprocess = self.key["preprocess"]
        mean, std = (torch.tensor(preprocess[name], device=pixels.device).view(3, 1, 1) for name in ("mean", "std"))
        return super()._input((pixels - mean) / std)

    @staticmethod
    def _pick(inputs: list[Tensor], places: list[int]) -> list[Tensor]:
        return [inputs[place] for place in places]

    def _units_a_row(self) -> float:
        """Frames of a clip: an upper bound, or the mean where the frames were counted."""
        return float(self.mean_frames or self.key["sampling"]["frames"])
