"""Endless samples of the pre-training domain, drawn on demand."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlkit.drawn.captions import caption
from vlkit.drawn.draw import draw
from vlkit.drawn.scenes import Scene, sample_scene

TRAIN, VALIDATION = 101, 102


def scene_and_rng(seed: int, split: int, index: int) -> tuple[Scene, np.random.Generator]:
    """Scene ``index`` of an endless stream and the generator that goes on to describe it; a pure function."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, split, index])))
    return sample_scene(rng, "pretrain"), rng


class PretrainingPairs(Dataset[tuple[Tensor, str]]):
    """Images with one caption each.

    Args:
        seed: of the world.
        split: :data:`TRAIN` or :data:`VALIDATION`.
        count: how many samples the stream offers.
        first: number of the first sample.
        detail: level of the captions, 0 to 3; None mixes levels.
    """

    def __init__(self, seed: int, split: int, count: int, first: int = 0, detail: int | None = None) -> None:
        self.seed, self.split, self.count, self.first, self.detail = seed, split, count, first, detail

    def __len__(self) -> int:
        return self.count - self.first

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """Image [3, 96, 96] uint8 and its caption."""
        scene, rng = scene_and_rng(self.seed, self.split, self.first + index)
        text = caption(scene, rng, self.detail)
        return torch.from_numpy(np.asarray(draw(scene)).copy()).permute(2, 0, 1), text
