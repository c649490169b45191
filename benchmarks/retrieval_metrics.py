"""Time and memory of the retrieval metrics at COCO-5K size, compared with one matrix product of the same embeddings.

    python benchmarks/retrieval_metrics.py

Both alternate and their medians are compared, so that a slower machine affects both.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlkit.cli.config import run
from vlkit.files import write_json
from vlkit.metrics.retrieval import image_text_metrics, image_text_metrics_of_similarity


@dataclass
class Config:
    """Time and memory of the retrieval metrics."""

    images: int = 5000
    """Number of images, with five captions each."""
    width: int = 512
    """Width of the embeddings."""
    repeats: int = 7
    """Number of runs of each."""
    json: Path | None = None
    """Also write the results to this JSON file."""


def main(config: Config) -> None:
    rng = np.random.default_rng(0)
    images, texts = (unit(rng.normal(size=(n, config.width))) for n in (config.images, 5 * config.images))
    owner = np.repeat(np.arange(config.images), 5)
    ratios = []
    for _ in range(config.repeats):
        product = seconds(lambda: images @ texts.T)
        ratios.append(seconds(lambda: image_text_metrics(images, texts, owner)) / product)
    tracemalloc.start()
    metrics = image_text_metrics(images, texts, owner)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The metrics compare float64 dot products; so does this slow reference, which holds the whole matrix.
    whole = image_text_metrics_of_similarity(images.astype(np.float64) @ texts.astype(np.float64).T, owner)
    found = {
        "time over one matrix product": round(statistics.median(ratios), 2),
        "peak MB": round(peak / 1e6, 1),
        "same numbers as the whole matrix": metrics == whole,
    }
    print(", ".join(f"{name}: {value}" for name, value in found.items()))
    if config.json:
        write_json(config.json, found)


def unit(x: np.ndarray) -> np.ndarray:
    """Normalise rows to float32 unit vectors."""
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def seconds(function: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


if __name__ == "__main__":
    run(main, Config)
