"""Pipeline for text-video retrieval: videos, images and texts -> unit vectors in one space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.adapters.adapter_files import AdapterFiles
from vlkit.adapters.options import adapter_options
from vlkit.data.video.clip_frames import Clip, Sampling
from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.encoders.load import load_base
from vlkit.engine.checkpoint import check_base, load_trained
from vlkit.engine.distributed import make_fabric
from vlkit.engine.foreign import built_for
from vlkit.errors import listed
from vlkit.files import sha256_of
from vlkit.tasks.retrieval.pipeline import RetrievalPipeline, check_joint_space, model_identity
from vlkit.tasks.video_retrieval.data import ClipReader
from vlkit.tasks.video_retrieval.evaluate import VideoEmbedder
from vlkit.tasks.video_retrieval.model import VideoHeadOptions, VideoText, build_model, frames_and_sampling, zero_shot

Video = str | Path | tuple[str | Path, float | None, float | None]


class VideoRetrievalPipeline(RetrievalPipeline):
    """An adapted video-text model. Safe to call from several threads.

    An image is embedded as a video of one frame. See :class:`vlkit.tasks.retrieval.pipeline.RetrievalPipeline` for the
    arguments; ``embedder`` is a :class:`vlkit.tasks.video_retrieval.evaluate.VideoEmbedder`.
    """

    embedder: VideoEmbedder

    def embed_videos(self, videos: Sequence[Video]) -> np.ndarray:
        """Videos -> float32 [n, E], unit norm.

        Args:
            videos: paths, or (path, start, end) with times in seconds (None = from the beginning, to the end).

        Raises:
            vlkit.data.images.MediaError: a file is not a readable video; names it and the reason.
        """
        clips = [as_clip(video) for video in listed(videos, "videos")]
        with self._lock:
            return self.embedder.videos(clips, self.embedder.reader).numpy()

    def embed_frames(self, videos: Sequence[Tensor]) -> np.ndarray:
        """Frames [t, 3, H, W] uint8 of each video, as the embedder's reader gives them -> float32 [n, E], unit norm."""
        with self._lock:
            return self.embedder.videos(videos, lambda frames: frames).numpy()


def as_clip(video: Video) -> Clip:
    """A path, or (path, start, end), as a :class:`vlkit.data.video.clip_frames.Clip`."""
    path, start, end = video if isinstance(video, tuple) else (video, None, None)
    return Clip(Path(path), start, end)


def open_adapter(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
    fabric: Fabric,
    base: ClipBase | None = None,
    text_base: TextBase | None = None,
) -> VideoRetrievalPipeline:
    """Attach a saved adapter to its base; see :func:`vlkit.tasks.load.load`. ``text_base`` is not used."""
    base = base or load_base(
        config["base"]["image"]["load"], context_length=config["base"]["text"].get("context_length")
    )
    check_base(config, base.identity, folder)
    with built_for(tensors, folder, base.image.model, base.text.model):
        model = build_model(base, adapter_options(config["adapters"]["image"]), VideoHeadOptions(**config["head"]))
    load_trained(model, tensors, folder)
    fingerprint = sha256_of(AdapterFiles.find(folder).tensors)[:16] + getattr(tensors, "tag", "")
    with built_for(tensors, folder):
        reader = ClipReader(base.preprocess, *frames_and_sampling(config))
    return _pipeline(base, model, reader, fabric, folder.name, fingerprint, config.get("metrics", {}))


def load_zero_shot(
    base_name: str, device: str = "auto", frames: int = 12, sampling: Sampling = "uniform"
) -> VideoRetrievalPipeline:
    """The unadapted base: frames are embedded as images and averaged."""
    base = load_base(base_name)
    check_joint_space(base)
    reader = ClipReader(base.preprocess, frames, sampling)
    return _pipeline(base, zero_shot(base), reader, make_fabric(device), base.name, "zero-shot video", {})


def _pipeline(
    base: ClipBase,
    model: VideoText,
    reader: ClipReader,
    fabric: Fabric,
    name: str,
    adapter: str,
    metrics: dict[str, float],
) -> VideoRetrievalPipeline:
    fabric.setup_module(model.requires_grad_(False)).eval()
    # Other frames give other vectors, so they are part of the identity that an index is bound to.
    identity = model_identity(base, name, f"{adapter} {reader.count} {reader.sampling}")
    return VideoRetrievalPipeline(VideoEmbedder(model, base, fabric, reader), name, identity, metrics)
