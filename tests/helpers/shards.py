"""Drawn images in WebDataset tars, and an image model that needs no weights."""

from __future__ import annotations

import io
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlkit.data.shards import find_shards
from vlkit.extract import Options, Parts, embed_shards


def image_bytes(number: int, kind: str = "PNG") -> bytes:
    """A small image file that differs for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number % 5, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def make_tars(folder: Path, shards: int = 8, each: int = 25, **replaced: bytes) -> list[Path]:
    """Tars of ``each`` images with captions; ``replaced`` gives other bytes for members, as ``n000007=b"…"``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard in range(shards):
        paths.append(folder / f"{shard:03d}.tar")
        with tarfile.open(paths[-1], "w") as archive:
            for number in range(shard * each, (shard + 1) * each):
                name = f"n{number:06d}"
                for member, content in ((f"{name}.txt", b"a caption"), (f"{name}.png", replaced.get(name))):
                    content = image_bytes(number) if content is None else content
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return paths


class FlatModel:
    """Embeds an image by a fixed projection of its pixels; each batch takes ``seconds``."""

    dim, identity = 8, "flat model"
    min_side: int | None = None

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches = seconds, list[int]()
        self._project = torch.randn(3 * 16 * 16, self.dim, generator=torch.Generator().manual_seed(0))

    def transform(self, image: Image.Image) -> Tensor:
        """[3, 16, 16]."""
        return torch.from_numpy(np.array(image.resize((16, 16)))).permute(2, 0, 1).float() / 255

    def embed(self, pixels: Tensor) -> Tensor:
        """[B, 8]."""
        time.sleep(self.seconds)
        self.batches.append(len(pixels))
        return torch.nn.functional.normalize(pixels.flatten(1) @ self._project, dim=1)


if __name__ == "__main__":  # shards.py INPUT OUTPUT SECONDS: a process that a test kills
    found = Parts.open(sys.argv[2], FlatModel.identity, FlatModel.dim)
    embed_shards(find_shards([sys.argv[1]]), FlatModel(float(sys.argv[3])), found, Options(batch_size=5))
