"""Video-text retrieval: build the model and measure it. Shared by training, evaluation and serving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.adapters.linear import LinearOptions
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.data.video.clip_frames import Sampling
from vlkit.encoders.bases import ClipBase
from vlkit.engine.distributed import gather_shares, my_share
from vlkit.metrics.video import text_video_metrics
from vlkit.tasks.retrieval import evaluate as retrieval
from vlkit.tasks.video_retrieval.data import ClipReader, RecordFrames, clip_batches
from vlkit.tasks.video_retrieval.model import VideoHeadOptions, VideoText

FRAMES_AT_ONCE = 64
VIDEOS_AT_ONCE = 16


def build_model(base: ClipBase, adapter: Any, head: VideoHeadOptions) -> VideoText:
    """Put the same adaptation method on both towers, a head on each, and a temporal head behind the frames.

    Args:
        base: the loaded base; its towers become part of the model and are frozen or unfrozen by the method.
        adapter: options of one of :data:`vlkit.adapters.ADAPTERS`.
        head: how outputs become embeddings.
    """
    return VideoText(retrieval.build_model(base, adapter, head), head, base.preprocess)


def zero_shot(base: ClipBase) -> VideoText:
    """The base as it is: frames are embedded as images and averaged, nothing is trained."""
    return build_model(base, LinearOptions(), VideoHeadOptions(projection=False)).requires_grad_(False).eval()


def adapter_config(
    base: ClipBase, adapter: Any, head: VideoHeadOptions, reader: ClipReader, metrics: dict[str, float]
) -> dict[str, Any]:
    """What ``adapter_config.json`` says: everything needed to build this model again on the same base."""
    config = retrieval.adapter_config(base, adapter, head, metrics)
    video = {"frames": reader.count, "sampling": reader.sampling}
    return {**config, "task": "video_retrieval", "head": asdict(head), "preprocess": {**config["preprocess"], **video}}


def frames_and_sampling(config: dict[str, Any]) -> tuple[int, Sampling]:
    """How a saved adapter reads videos: frames per clip and how they are chosen."""
    return config["preprocess"]["frames"], config["preprocess"]["sampling"]


class VideoEmbedder(retrieval.Embedder):
    """Embeds videos, images and texts in batches, without gradient.

    Args:
        model: on its device; called in eval mode, left in the mode it had.
        base: the base it stands on (tokenizer).
        fabric: device and precision.
        reader: how clips are read.
        chunk: frames through the image tower at once.
    """

    model: VideoText

    def __init__(
        self, model: VideoText, base: ClipBase, fabric: Fabric, reader: ClipReader, chunk: int = FRAMES_AT_ONCE
    ) -> None:
        super().__init__(model, base, fabric)
        self.reader, self.chunk = reader, chunk
        self.transform = reader.transform

    def videos(self, sources: Sequence[Any], read: Callable[[Any], Tensor], label: str = "videos") -> Tensor:
        """``read`` turns each source into frames [t, 3, H, W] uint8 -> [n, E] float32 on the CPU, unit norm."""
        batches = clip_batches(sources, read, VIDEOS_AT_ONCE)
        embed = lambda frames: self.model.embed_videos(frames, self.chunk)  # noqa: E731
        return self._run(embed, batches, len(sources), label, VIDEOS_AT_ONCE)


class Embedded(NamedTuple):
    """Embeddings of a set: videos [V, E] and sentences [T, E] (float32, CPU, unit norm), owner int64 [T].

    ``owner`` is the video of each sentence; sentences stand in the order of their videos.
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
    owner = np.repeat(np.arange(len(records)), [len(record["texts"]) for record in records])
    mine = [records[i] for i in my_share(fabric, len(records))]
    videos = embedder.videos(mine, frames.read, f"{label} videos")
    sentences = embedder.texts([texts[i] for i in my_share(fabric, len(texts))], f"{label} sentences")
    return Embedded(gather_shares(fabric, videos, len(records)), gather_shares(fabric, sentences, len(texts)), owner)


def evaluate_split(embedder: VideoEmbedder, dataset: Dataset, split: str) -> dict[str, float]:
    """Recalls of a split; see :mod:`vlkit.metrics.video` for the keys."""
    return text_video_metrics(*embed_records(embedder, RecordFrames(dataset, split, embedder.reader), label=split))


def protocol(embedded: Embedded) -> str:
    """Which protocol :func:`vlkit.metrics.video.text_video_metrics` follows on this data."""
    return "single sentence" if len(embedded.videos) == len(embedded.texts) else "several sentences a video"
