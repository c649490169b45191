"""The image tower of a retrieval model, as :mod:`vlkit.extract` runs it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from vlkit.tasks.load import load
from vlkit.tasks.retrieval.pipeline import RetrievalPipeline, load_zero_shot


class ImageTower:
    """A :class:`vlkit.extract.ImageModel` over a retrieval pipeline; ``draft``: see its ``transform``."""

    def __init__(self, pipeline: RetrievalPipeline, draft: bool = True) -> None:
        self._embedder, self.dim, self.identity = pipeline.embedder, pipeline.dim, pipeline.identity
        self.min_side = pipeline.embedder.base.preprocess.draft_side if draft else None
        self.on_cuda = self._embedder.fabric.device.type == "cuda"

    def transform(self, image: Image.Image) -> Tensor:
        """An RGB image -> [3, H, W] float32, as the base wants it."""
        return self._embedder.transform(image)

    def embed(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, E] float32, unit norm, on the device."""
        return self._embedder.pixels(pixels)


def open_tower(model: Path | None, base: str | None, device: str, draft: bool = True) -> ImageTower:
    """The tower of a saved adapter, or of a base alone."""
    pipeline = load(model, device, task="retrieval") if model else load_zero_shot(str(base), device)
    return ImageTower(pipeline, draft)
