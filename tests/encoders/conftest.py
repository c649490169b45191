"""A small dataset for tests that train on a base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlkit.data.manifest import write_dataset

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "black": (0, 0, 0)}


@pytest.fixture
def dataset_of_squares(tmp_path: Path) -> Path:
    """A prepared dataset of 16 squares with a caption each."""
    root, splits = tmp_path / "squares", {}
    root.mkdir()
    for number, split in enumerate(["train"] * 8 + ["val"] * 4 + ["test"] * 4):
        name, colour = list(COLOURS.items())[number % 4]
        pixels = np.full((48, 48, 3), 255, np.uint8)
        pixels[4 + number : 20 + number, 8:24] = colour
        Image.fromarray(pixels).save(root / f"{number}.png")
        record = {"id": str(number), "image": f"{number}.png", "texts": [f"a {name} square"]}
        splits.setdefault(split, []).append(record)
    write_dataset(root, name="squares", task="retrieval", splits=splits, media_root=root, source="made for a test")
    return root
