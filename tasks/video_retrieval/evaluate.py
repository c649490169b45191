"""Measure a saved adapter, or a base alone, on a split of a prepared video dataset.

python tasks/video_retrieval/evaluate.py --model runs/video_retrieval/… --data.root DIR --split test --json metrics.json
python tasks/video_retrieval/evaluate.py --base ViT-B-32:openai --data.root DIR          # zero-shot

With one sentence per video (MSR-VTT 1k-A) or several (MSVD, full MSR-VTT), the matching protocol is used and printed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.data.manifest import Dataset
from vlkit.data.video.clip_frames import Sampling
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.metrics.rerank import dual_softmax, query_bank, reranked_metrics
from vlkit.metrics.video import text_video_metrics
from vlkit.tasks.after_training import (
    AfterTraining,
    load_mixed,
    measure_others,
    other_datasets,
    refuse_without_model,
)
from vlkit.tasks.video_retrieval.data import ClipReader, RecordFrames
from vlkit.tasks.video_retrieval.evaluate import Embedded, VideoEmbedder, embed_records, protocol
from vlkit.tasks.video_retrieval.pipeline import VideoRetrievalPipeline, load_zero_shot
from vlkit.tasks.video_retrieval.task import TASK

RERANK_NOTES = {
    "dsl": "re-ranked by dual softmax, which uses statistics of the whole test set: not comparable to plain recalls",
    "qbnorm": "re-ranked by query-bank normalisation with training queries: not comparable to plain recalls",
}


@dataclass
class Data:
    """Dataset to evaluate on."""

    root: Path | None = None
    """Prepared dataset; default: the demo dataset."""


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
    frames: int | None = None
    """Frames per video; default: as in training, 12 for a base alone."""
    sampling: Sampling | None = None
    """How frames are chosen; default: as in training, uniform for a base alone."""
    rerank: Literal["none", "dsl", "qbnorm"] = "none"
    """Also report recalls after re-ranking: dsl (dual softmax; uses all test queries at once), qbnorm (query-bank
    normalisation; uses training queries)."""
    bank: str = "train"
    """Split whose queries form the bank of qbnorm."""
    bank_size: int = 1000
    """Most videos of that split in the bank, with all their sentences."""

    def __post_init__(self) -> None:
        if self.bank_size < 1:
            raise UserError(f"--bank_size {self.bank_size}: must be at least 1")


def main(config: Config) -> None:
    if (config.model is None) == (config.base is None):
        raise UserError("give either --model DIR (a saved adapter) or --base NAME (zero-shot)")
    dataset = TASK.dataset(config.data.root)
    others = other_datasets(config, TASK, config.split)
    pipeline = open_pipeline(config)
    embedder = with_frames(pipeline.embedder, config)
    embedded = embed_records(embedder, RecordFrames(dataset, config.split, embedder.reader), label=config.split)
    metrics = text_video_metrics(*embedded)
    if config.rerank != "none":
        again = rerank(embedded, embedder, dataset, config)
        metrics |= {f"{config.rerank}_{key}": value for key, value in again.items()}
    title = (
        f"{pipeline.name}: {len(embedded.videos)} videos, {len(embedded.texts)} sentences of "
        f"{dataset.name}/{config.split}, {protocol(embedded)}, {embedder.reader.count} frames"
    )
    table = Table(title=title)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in metrics.items():
        table.add_row(key, f"{value:.2f}")
    console = Console()
    console.print(table)
    if config.rerank != "none":
        console.print(f"{config.rerank}_*: {RERANK_NOTES[config.rerank]}", highlight=False)

    def measure(pipeline: VideoRetrievalPipeline, dataset: Dataset, split: str) -> dict[str, float]:
        embedder = with_frames(pipeline.embedder, config)
        return text_video_metrics(*embed_records(embedder, RecordFrames(dataset, split, embedder.reader), label=split))

    also = measure_others(config.model, config, TASK, config.split, others, measure) if config.model else {}
    if config.json:
        about = {"model": str(config.model or config.base), "split": config.split, "protocol": protocol(embedded)}
        about |= {"frames": embedder.reader.count, "sampling": embedder.reader.sampling, "rerank": config.rerank}
        write_json(config.json, about | metrics | also)


def open_pipeline(config: Config) -> VideoRetrievalPipeline:
    """The saved adapter, or the base alone."""
    if config.model:
        return load_mixed(config.model, TASK.name, config)
    refuse_without_model(config)
    return load_zero_shot(config.base, config.device)


def with_frames(embedder: VideoEmbedder, config: Config) -> VideoEmbedder:
    """The embedder with the requested number of frames and sampling."""
    reader = embedder.reader
    count = reader.count if config.frames is None else config.frames
    embedder.reader = ClipReader(embedder.base.preprocess, count, config.sampling or reader.sampling)
    return embedder


def rerank(embedded: Embedded, embedder: VideoEmbedder, dataset: Dataset, config: Config) -> dict[str, float]:
    """Metrics after re-ranking both directions."""
    videos, texts = embedded.videos, embedded.texts
    similarity = (texts @ videos.T).numpy()  # [T, V]
    if config.rerank == "dsl":
        return reranked_metrics(dual_softmax(similarity), dual_softmax(similarity.T), embedded.owner)
    frames = RecordFrames(dataset, config.bank, embedder.reader)
    chosen = torch.randperm(len(frames.records), generator=torch.Generator().manual_seed(0))[: config.bank_size]
    bank = embed_records(embedder, frames, [frames.records[i] for i in chosen.tolist()], "bank")
    forward = query_bank(similarity, (bank.texts @ videos.T).numpy())
    backward = query_bank(similarity.T, (bank.videos @ texts.T).numpy())
    return reranked_metrics(forward, backward, embedded.owner)


if __name__ == "__main__":
    run(main, Config)
