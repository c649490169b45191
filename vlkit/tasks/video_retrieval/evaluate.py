"""Video-text retrieval: build the model and measure it. Shared by training, evaluation and serving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.tokenizer import warn_of_cut_texts
from vlkit.engine.distributed import gather_shares, my_share
from vlkit.metrics.video import text_video_metrics
from vlkit.tasks.retrieval import evaluate as retrieval
from vlkit.tasks.two_tower import TwoTower
from vlkit.tasks.video_retrieval.data import ClipReader, RecordFrames, clip_batches
from vlkit.tasks.video_retrieval.model import VideoText

FRAMES_AT_ONCE = 64
VIDEOS_AT_ONCE = 16
COLUMNS = {f"{way} R@{k}": f"{way}_r{k}" for way in ("t2v", "v2t") for k in (1, 5, 10)} | {"rsum": "rsum"}
"""Heading -> metric, for a table of results."""


class VideoEmbedder(retrieval.Embedder):
    """Embeds videos, images and texts in batches, without gradient.

    Args:
        model: the model on its device; run in eval mode, its mode is restored.
        base: its base (for the tokenizer).
        fabric: device and precision.
        reader: how clips are read.
        chunk: frames per pass through the image tower.
    """

    model: VideoText

    def __init__(
        self, model: VideoText, base: ClipBase, fabric: Fabric, reader: ClipReader, chunk: int = FRAMES_AT_ONCE
    ) -> None:
        super().__init__(cast(TwoTower, model), base, fabric)
        self.reader, self.chunk = reader, chunk
        self.transform = reader.transform

    def videos(self, sources: Sequence[Any], read: Callable[[Any], Tensor], label: str = "videos") -> Tensor:
        """``read`` turns each source into frames [t, 3, H, W] uint8 -> [n, E] float32 on the CPU, unit norm."""
        batches = clip_batches(sources, read, VIDEOS_AT_ONCE)
        embed = lambda frames: self.model.embed_videos(frames, self.chunk)  # noqa: E731
        return self._run(embed, batches, len(sources), label, VIDEOS_AT_ONCE)


class Embedded(NamedTuple):
    """Embeddings of a set: videos [V, E] and sentences [T, E] (float32, CPU, unit norm), owner int64 [T].

    ``owner`` is the video of each sentence; sentences are in the order of their videos.
    """

    videos: Tensor
    texts: Tensor
    owner: np.ndarray


def embed_records(
    embedder: VideoEmbedder, frames: RecordFrames, records: Sequence[Record] | None = None, label: str = ""
) -> Embedded:
    """Embed the videos of records (default: all of the split) and all their sentences; processes share the work.

    Raises:
        UserError: a video cannot be read.
    """
    fabric, records = embedder.fabric, frames.records if records is None else records
    texts = [text for record in records for text in record["texts"]]
    warn_of_cut_texts(embedder.base.tokenize, texts, f"{label} sentences")
    owner = np.repeat(np.arange(len(records)), [len(record["texts"]) for record in records])
    mine = [records[i] for i in my_share(fabric, len(records))]
    videos = embedder.videos(mine, frames.read, f"{label} videos")
    sentences = embedder.texts([texts[i] for i in my_share(fabric, len(texts))], f"{label} sentences")
    return Embedded(gather_shares(fabric, videos, len(records)), gather_shares(fabric, sentences, len(texts)), owner)


@dataclass
class Clips:
    """All or some clips of a split.

    Attributes:
        name: name in messages, usually that of the split.
        frames: reads the clips.
        records: the records to use; default: all.
    """

    name: str
    frames: RecordFrames
    records: Sequence[Record] = ()

    def __post_init__(self) -> None:
        self.records = self.records or self.frames.records

    def embed(self, embedder: VideoEmbedder) -> Embedded:
        """Embeddings of the videos and of all their sentences; see :func:`embed_records`."""
        return embed_records(embedder, self.frames, self.records, self.name)


def evaluate_split(embedder: VideoEmbedder, dataset: Dataset, split: str) -> dict[str, float]:
    """Recalls of a split; see :mod:`vlkit.metrics.video` for the keys."""
    return text_video_metrics(*embed_records(embedder, RecordFrames(dataset, split, embedder.reader), label=split))


def protocol(embedded: Embedded) -> str:
    """Which protocol :func:`vlkit.metrics.video.text_video_metrics` follows on this data."""
    return "single sentence" if len(embedded.videos) == len(embedded.texts) else "several sentences per video"
