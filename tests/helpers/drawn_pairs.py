"""A small prepared dataset for image-text retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vlkit.data.manifest import write_dataset
from vlkit.drawn.captions import captions
from vlkit.drawn.draw import draw
from vlkit.drawn.scenes import sample_scene


def draw_pairs(root: Path, counts: Mapping[str, int]) -> Path:
    """Draw ``counts[split]`` scenes per split into the folder ``root``, each with three captions."""
    rng = np.random.default_rng(0)
    splits: dict[str, list[dict]] = {}
    for split, count in counts.items():
        for i in range(count):
            scene = sample_scene(rng, "demo")
            draw(scene).save(root / f"{split}{i}.png")
            record = {"id": f"{split}/{i}", "image": f"{split}{i}.png", "texts": captions(scene, rng, 3)}
            splits.setdefault(split, []).append(record)
    write_dataset(root, name="drawn", task="retrieval", splits=splits, media_root=root, source="made for a test")
    return root
