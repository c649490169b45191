"""Measure a saved adapter, or a base alone, on a split of a prepared dataset.

python tasks/retrieval/evaluate.py --model runs/retrieval/… --data.root DIR --split test --json metrics.json
python tasks/retrieval/evaluate.py --base ViT-B-32:openai --data.root DIR          # zero-shot
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.data.manifest import Dataset
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.tasks.after_training import (
    AfterTraining,
    load_mixed,
    measure_others,
    other_datasets,
    refuse_without_model,
)
from vlkit.tasks.retrieval.evaluate import captions_left_out, embed_split, index_recalls, retrieval_metrics
from vlkit.tasks.retrieval.pipeline import RetrievalPipeline, load_zero_shot
from vlkit.tasks.retrieval.task import TASK


@dataclass
class Data:
    """Dataset to evaluate on."""

    root: Path | None = None
    """Prepared dataset, WebDataset tars ("shards/{000..099}.tar", or their folder), Parquet files, or a Hugging Face
    dataset (folder, hf:ORG/NAME); default: the demo dataset."""
    columns: str = ""
    """Columns of rows: image=COLUMN,texts=COLUMN,split=COLUMN; guessed from names and types if left out. For tars,
    fields of the .json beside an image: texts=FIELD,split=FIELD."""
    hold_out: float | None = None
    """Share of the images of rows or tars for validation, and as many for testing, where they name no such splits;
    default: 0.1. Evaluate with the same share."""


@dataclass(kw_only=True)
class Config(AfterTraining):
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

    def __post_init__(self) -> None:
        if self.folds < 1:
            raise UserError(f"--folds {self.folds}: must be at least 1; 1 = no folds")


def main(config: Config) -> None:
    if (config.model is None) == (config.base is None):
        raise UserError("give either --model DIR (a saved adapter) or --base NAME (zero-shot)")
    dataset = TASK.dataset(config.data.root, config.data.columns, config.data.hold_out)
    others = other_datasets(config, TASK, config.split)
    pipeline = open_pipeline(config)
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
    also = measure_others(config.model, config, TASK, config.split, others, measure) if config.model else {}
    if config.json:
        about = {"model": str(config.model or config.base), "split": config.split}
        write_json(config.json, {**about, **metrics, **also})


def open_pipeline(config: Config) -> RetrievalPipeline:
    """The saved adapter, or the base alone."""
    if config.model:
        return load_mixed(config.model, TASK.name, config)
    refuse_without_model(config)
    assert config.base is not None  # main has checked that one of the two was given
    return load_zero_shot(config.base, config.device)


def measure(pipeline: RetrievalPipeline, dataset: Dataset, split: str) -> dict[str, float]:
    """Metrics of a pipeline on a split."""
    return retrieval_metrics(*embed_split(pipeline.embedder, dataset, split))


if __name__ == "__main__":
    run(main, Config)
