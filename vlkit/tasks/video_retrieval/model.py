"""Video-text retrieval: two adapted towers, frames encoded in chunks by the image tower, and a temporal head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.linear import LinearOptions
from vlkit.data.video.clip_frames import Sampling
from vlkit.data.video.frame_batch import Frames
from vlkit.encoders.bases import ClipBase, Preprocess
from vlkit.encoders.staged import ReadAhead
from vlkit.errors import UserError
from vlkit.tasks.gradient_cache import encode_twice
from vlkit.tasks.retrieval import model as images
from vlkit.tasks.two_tower import MAX_LOGIT_SCALE, HeadOptions, TwoTower
from vlkit.tasks.video_retrieval.data import ClipReader
from vlkit.tasks.video_retrieval.temporal import MAX_FRAMES, Init, TemporalKind, temporal_head


@dataclass
class VideoHeadOptions(HeadOptions):
    """Options of the heads that turn encoder outputs into embeddings of videos and texts."""

    temporal: TemporalKind = "mean"
    """mean: average the frames; lstm, transformer: model the sequence first (meanP, seqLSTM, seqTransf of
    CLIP4Clip).
    """
    temporal_layers: int | None = None
    """Layers of lstm (default 1) and transformer (default 4)."""
    temporal_init: Init = "identity"
    """identity: lstm and transformer start exactly as the mean; published: random weights."""
    scale: Literal["frozen", "trained"] = "frozen"
    """Factor on the cosine in the loss: that of the base (published for SHERL), or trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temporal_layers is not None and (self.temporal == "mean" or self.temporal_layers < 1):
            fix = "temporal mean has no layers; leave it out" if self.temporal == "mean" else "must be at least 1"
            raise UserError(f"--head.temporal_layers {self.temporal_layers}: {fix}")

    def check_frames(self, frames: int) -> None:
        """Refuse more frames than the temporal head has positions for."""
        if self.temporal == "transformer" and frames > MAX_FRAMES:
            raise UserError(f"--frames {frames}: --head.temporal transformer reads at most {MAX_FRAMES}")


class VideoText(nn.Module):
    """Frames and texts -> unit vectors in one space.

    Frames pass through the image tower in chunks. In training each chunk is encoded without saved activations and
    encoded again when its gradient is known (gradient caching over frames, as in GradCache, arXiv:2101.06983). A step
    holds the activations of one chunk, regardless of the number of frames, and the gradient is that of the whole
    batch. Frames stay in host memory as bytes until their chunk is due.

    Args:
        towers: adapted encoders and embedding heads.
        options: see :class:`VideoHeadOptions`.
        preprocess: mean and standard deviation of the pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, towers: TwoTower, options: VideoHeadOptions, preprocess: Preprocess) -> None:
        super().__init__()
        self.towers = towers
        self.temporal = temporal_head(
            options.temporal, towers.image_head.out_dim, options.temporal_layers, options.temporal_init
        )
        towers.logit_scale.requires_grad_(options.scale == "trained")
        towers.logit_bias.requires_grad_(False)  # used only by sigmoid losses
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocess, name), dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    @property
    def out_dim(self) -> int:
        """Width E of the joint space."""
        return self.towers.image_head.out_dim

    @property
    def keeps_activations(self) -> bool:
        """Whether backward needs more of a frame than its pooled embedding (all methods except the linear control)."""
        image = self.towers.image
        return not isinstance(image, AdaptedEncoder) or bool(image.adapter.layers) or image.adapter.late > 0

    def embed_frames(self, pixels: Tensor | ReadAhead) -> Tensor:
        """Frames [F, 3, H, W] uint8, on any device, or their cached taps -> [F, E], not normalised."""
        if isinstance(pixels, ReadAhead):
            return self.towers.image_head.features(self.towers.image(pixels.to(self.mean.device)))
        values = pixels.to(self.mean.device, non_blocking=True).float() / 255
        scaled = ((values - self.mean) / self.std).to(self.mean.dtype)
        return self.towers.image_head.features(self.towers.image(scaled))

    def embed_videos(self, frames: Frames, chunk: int = 0) -> Tensor:
        """Videos -> [B, E] float32, unit norm; ``chunk`` frames at a time, 0 = all."""
        parts = frames.chunks(chunk)
        encode: Callable[[Tensor], Tensor] = self.embed_frames
        if len(parts) > 1 and torch.is_grad_enabled() and self.keeps_activations:
            encode = partial(encode_twice, self.embed_frames, anchor=self.mean)
        flat = torch.cat([encode(part) for part in parts])  # [F, E]
        mask, rows = (tensor.to(flat.device, non_blocking=True) for tensor in (frames.mask, frames.rows))
        grid = flat.index_select(0, rows.flatten()).view(*mask.shape, -1) * mask.unsqueeze(-1)  # [B, T, E]
        return self.temporal(grid, mask).float()

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Images [B, 3, H, W] uint8, each a video of one frame -> [B, E] float32, unit norm."""
        return self.embed_videos(Frames.of([image.unsqueeze(0) for image in pixels]))

    def embed_texts(self, ids: Tensor) -> Tensor:
        """Token ids [B, L] int64 -> [B, E] float32, unit norm."""
        return self.towers.embed_texts(ids)

    def forward(self, frames: Frames, ids: Tensor, chunk: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [B, E] of videos and of texts, and the factor on their cosine (at most 100)."""
        scale = self.towers.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        return self.embed_videos(frames, chunk), self.embed_texts(ids), scale


def build_model(base: ClipBase, adapter: Any, head: VideoHeadOptions) -> VideoText:
    """Apply the same adaptation method to both towers; add a head to each, and a temporal head for the frames.

    Args:
        base: the loaded base; its towers become part of the model and are frozen or unfrozen by the method.
        adapter: options of one of :data:`vlkit.adapters.ADAPTERS`.
        head: how outputs become embeddings.
    """
    return VideoText(images.build_model(base, adapter, head), head, base.preprocess)


def zero_shot(base: ClipBase) -> VideoText:
    """The unadapted base: frames are embedded as images and averaged, nothing is trained."""
    return (
        build_model(base, LinearOptions(), VideoHeadOptions(projection=base.joint_dim is not None))
        .requires_grad_(False)
        .eval()
    )


def adapter_config(
    base: ClipBase, adapter: Any, head: VideoHeadOptions, reader: ClipReader, metrics: dict[str, float]
) -> dict[str, Any]:
    """Content of ``vlkit_adapter.json``: everything needed to rebuild this model on the same base."""
    config = images.adapter_config(base, adapter, head, metrics)
    video = {"frames": reader.count, "sampling": reader.sampling}
    return {**config, "task": "video_retrieval", "head": asdict(head), "preprocess": {**config["preprocess"], **video}}


def frames_and_sampling(config: dict[str, Any]) -> tuple[int, Sampling]:
    """How a saved adapter reads videos: frames per clip and their sampling."""
    return config["preprocess"]["frames"], config["preprocess"]["sampling"]
