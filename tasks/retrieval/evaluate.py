"""Measure a saved adapter, or a base alone, on a split of a prepared dataset.

python tasks/retrieval/evaluate.py --model runs/retrieval/… --data.root DIR --split test --json metrics.json
python tasks/retrieval/evaluate.py --base ViT-B-32:openai --data.root DIR          # zero-shot
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.tasks.load import load
from vlkit.tasks.retrieval.evaluate import captions_left_out, embed_split, index_recalls, retrieval_metrics
from vlkit.tasks.retrieval.pipeline import load_zero_shot
from vlkit.tasks.retrieval.task import TASK


@dataclass
class Data:
    """Dataset to evaluate on."""

    root: Path | None = None
    """Prepared dataset; default: the demo dataset."""


@dataclass
class Config:
    """Measure a saved adapter, or a base alone."""

    model: Path | None = None
    """Run or adapter folder."""
    base: str | None = None
    """Measure this base without an adapter instead."""
    data: Data = field(default_factory=Data)
    split: str = "test"
    """Split to evaluate."""
    folds: int = 1
    """Also report the mean over this many folds of images (5 on the COCO test split: "COCO 1K")."""
    index: str | None = None
    """Also report recalls with a FAISS index of this factory string (Flat, HNSW32, IVF256,Flat, …)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on."""
    json: Path | None = None
    """Write the metrics to this file."""

    def __post_init__(self) -> None:
        if self.folds < 1:
            raise UserError(f"--folds {self.folds}: must be at least 1; 1 = no folds")


def main(config: Config) -> None:
    if (config.model is None) == (config.base is None):
        raise UserError("give either --model DIR (a saved adapter) or --base NAME (zero-shot)")
    pipeline = (
        load(config.model, config.device, task=TASK.name)
        if config.model
        else load_zero_shot(config.base, config.device)
    )
    dataset = TASK.dataset(config.data.root)
    images, texts, owner = embed_split(pipeline.embedder, dataset, config.split)
    metrics = retrieval_metrics(images, texts, owner, config.folds)
    if config.index:
        metrics |= index_recalls(images.numpy(), texts.numpy(), owner, config.index)
    table = Table(
        title=f"{pipeline.name}: {len(images)} images, {len(texts)} captions of {dataset.name}/{config.split}"
    )
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in metrics.items():
        table.add_row(key, f"{value:.2f}")
    console = Console()
    console.print(table)
    if left_out := captions_left_out(dataset, config.split):
        console.print(left_out, highlight=False, soft_wrap=True)
    if config.json:
        write_json(config.json, {"model": str(config.model or config.base), "split": config.split, **metrics})


if __name__ == "__main__":
    run(main, Config)
