"""Adapt a CLIP base to text-video retrieval.

    python tasks/video_retrieval/train.py                                   # embedded base, demo clips, SHERL
    python tasks/video_retrieval/train.py --data.root DIR --base ViT-B-32:openai --head.temporal transformer

Reads top to bottom: data, base, adapter and heads, batches, loss, training, report.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vlkit.adapters import ADAPTERS
from vlkit.cli.config import kinds
from vlkit.cli.config import run as cli
from vlkit.data.manifest import Dataset
from vlkit.data.video.clip_frames import Sampling
from vlkit.data.video.frame_batch import Frames
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.load import load_base
from vlkit.encoders.stored_weights import with_format
from vlkit.encoders.tokenizer import warn_of_cut_texts
from vlkit.engine.config import CachedRunConfig
from vlkit.engine.fit import fit
from vlkit.engine.loader import EpochLoader, make_loader
from vlkit.engine.prepare import prepare
from vlkit.engine.run import Forward, Run, step_memory
from vlkit.errors import UserError
from vlkit.metrics.video import text_video_metrics
from vlkit.tap_cache.clips import ClipTapCache
from vlkit.tap_cache.maker import CachedLoader
from vlkit.tap_cache.pairs import cached_pairs
from vlkit.tasks.contrastive import example_losses, require_negatives
from vlkit.tasks.splits import data_identity, reported_split
from vlkit.tasks.video_retrieval.data import ClipReader, RecordFrames, VideoCollate, VideoTextPairs, hold_out
from vlkit.tasks.video_retrieval.evaluate import COLUMNS, Clips, VideoEmbedder, protocol
from vlkit.tasks.video_retrieval.losses import Loss, video_text_loss
from vlkit.tasks.video_retrieval.model import VideoHeadOptions, VideoText, adapter_config, build_model, zero_shot
from vlkit.tasks.video_retrieval.task import TASK

log = logging.getLogger(__name__)

LEAST_CHUNK = 32  # frames; smaller chunks waste time and save little


@dataclass
class Data:
    """Dataset to train on."""

    root: Path | None = None
    """Prepared dataset (data_prep/*); default: the demo dataset, made on first use."""
    train: str = "train"
    """Split to train on."""
    validation: str = "val"
    """Split that chooses the best checkpoint; if missing, a part of the training videos is held out."""
    test: str = "test"
    """Split to report on; if missing, the validation split."""
    hold_out: float = 0.1
    """Share of the training videos to hold out if there is no validation split."""
    every_caption: bool = False
    """Make each sentence a separate example (an epoch is all pairs; CLIP4Clip's sentence expansion); false: one
    example per video, with a random sentence in each epoch."""
    keep: float = 2.0
    """GiB of decoded frames cached in memory per worker; the rest is decoded in every epoch. 0 = none."""

    def __post_init__(self) -> None:
        if not 0 < self.hold_out < 1:
            raise UserError(f"--data.hold_out {self.hold_out}: must be a share between 0 and 1")
        if self.keep < 0:
            raise UserError(f"--data.keep {self.keep}: must be 0 or more (GiB)")


@dataclass
class Config(CachedRunConfig):
    """Adapt a CLIP base to text-video retrieval."""

    base: str = "tiny"
    """Base: tiny (embedded), ARCH, ARCH:TAG or ARCH:FILE of open_clip, hf:NAME_OR_FOLDER (CLIP or SigLIP of
    transformers), photos, or a pair timm:NAME+hf:NAME."""
    context_length: int | None = None
    """Tokens per text; default: the base's own. Position embeddings are resized; the adapter records the value."""
    data: Data = field(default_factory=Data)
    frames: int = 12
    """Frames per video; shorter videos give all their frames."""
    sampling: Sampling = "uniform"
    """uniform: evenly spaced; segment: one frame from each of equal segments, at random in training."""
    frame_chunk: Literal["auto"] | int = "auto"
    """Frames per pass through the image tower; memory does not grow with --frames, and frames beyond one chunk are
    encoded twice. auto: number of videos in a batch, at least 32; 0 = all at once, each encoded once."""
    adapter: Any = kinds(ADAPTERS, "sherl")
    head: VideoHeadOptions = field(default_factory=VideoHeadOptions)
    loss: Loss = field(default_factory=Loss)
    cache: bool | Path | None = None
    before: bool = True
    """Measure the base alone on the test split before training, too; false starts sooner."""
    epochs: int = 10
    batch_size: int = 32
    lr: float = 1e-3
    evaluate_every: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frame_chunk != "auto" and self.frame_chunk < 0:
            raise UserError(f"--frame_chunk {self.frame_chunk}: give auto, a number of frames, or 0 for all")
        self.head.check_frames(self.frames)
        if self.sampling != "uniform":
            self.refuse_cache(f"--sampling {self.sampling}", "a clip gives different frames")
        self.choose_cache(self.data.root is None and self.adapter.has_early_route)


def main(config: Config) -> None:
    run = Run.open(config, TASK.name)
    dataset = TASK.dataset(config.data.root)
    name = with_format(config.base, config.base_weights)
    base = load_base(name, context_length=config.context_length)
    reader = ClipReader(base.preprocess, config.frames, config.sampling)
    train, validation, test = splits_of(dataset, config.data, reader)
    pairs = VideoTextPairs(train.frames, train.records, config.data.every_caption)
    require_negatives(min(config.batch_size, len(pairs)), len(pairs.records))
    warn_of_cut_texts(base.tokenize, pairs.captions, "training sentences")

    # Measured before the adapter is built: full fine-tuning and LoRA change the base's own modules.
    before = measure_before(run, base, reader, test) if config.before else {}

    video_text = build_model(base, config.adapter, config.head)
    model = run.fabric.setup_module(video_text)
    embedder = VideoEmbedder(video_text, base, run.fabric, reader)
    collate = VideoCollate(base.tokenize, base.text.trim)
    loader = training_batches(run, config, pairs, collate, video_text, base)

    def loss_of(forward: Forward, batch: tuple[Frames, Tensor, Tensor], epoch: float) -> Tensor:
        frames, ids, groups = batch
        videos, texts, scale = forward(frames, ids, chunk=chunk_of(config, frames))
        return video_text_loss(videos, texts, groups, scale, config.loss, run.fabric)

    def evaluate() -> dict[str, float]:
        return text_video_metrics(*validation.embed(embedder))

    prepare(run, config.adapter, video_text, lambda: pairs, collate, loss_of, config.batch_size, example_losses)
    identity = {"base": base.identity, **data_identity(dataset, config.data.train, config.data.validation)}
    result = fit(run, model, loader, loss_of, evaluate, primary="rsum", identity=identity)
    embedded = test.embed(embedder)
    run.finish(
        result,
        video_text,
        adapter_config(base, config.adapter, config.head, reader, text_video_metrics(*embedded)),
        split=test.name,
        before=before,
        memory=step_memory(run, video_text, loader, loss_of),
        data={
            **{"name": dataset.name, "train videos": len(train.records), "train pairs": len(pairs)},
            "validation videos": len(validation.records),
        },
        columns=COLUMNS,
        note=protocol(embedded),
        more={"frames": config.frames, "sampling": config.sampling, "protocol": protocol(embedded)},
    )


def measure_before(run: Run, base: ClipBase, reader: ClipReader, test: Clips) -> dict[str, float]:
    """Metrics of the base without adapter."""
    untrained = zero_shot(base)
    run.fabric.setup_module(untrained)
    return text_video_metrics(*test.embed(VideoEmbedder(untrained, base, run.fabric, reader)))


def splits_of(dataset: Dataset, data: Data, reader: ClipReader) -> tuple[Clips, Clips, Clips]:
    """The clips for training, for choosing the best checkpoint, and for the report."""
    keep = int(data.keep * 2**30)
    test = reported_split(dataset, data, held_out=True)
    train = Clips(data.train, RecordFrames(dataset, data.train, reader, keep))
    if data.validation in dataset.splits:
        validation = Clips(data.validation, RecordFrames(dataset, data.validation, reader, keep))
    else:
        training, rest = hold_out(train.records, data.hold_out)
        log.info(
            "%s has no split %r: %d of its %d %s clips are held out to choose the best checkpoint",
            *(dataset.name, data.validation, len(rest), len(train.records), data.train),
        )
        train, validation = Clips(data.train, train.frames, training), Clips("validation", train.frames, rest)
    return train, validation, Clips(test, RecordFrames(dataset, test, reader))


def chunk_of(config: Config, frames: Frames) -> int:
    """Frames per pass through the image tower."""
    return max(len(frames.mask), LEAST_CHUNK) if config.frame_chunk == "auto" else config.frame_chunk


def training_batches(
    run: Run, config: Config, pairs: VideoTextPairs, collate: VideoCollate, model: VideoText, base: ClipBase
) -> EpochLoader | CachedLoader:
    """Batches of frames and sentences, or of their cached taps (``--cache``)."""
    if not config.cache:
        return make_loader(pairs, config, run.fabric, collate)
    options = {"name": "clip", "sampling": pairs.frames.source.key(), "cache": ClipTapCache}
    cached = cached_pairs(config.cache, config.cache_dtype, pairs, model.towers, base, run.fabric, **options)
    return cached.loader(make_loader(cached, config, run.fabric, cached.collate))


if __name__ == "__main__":
    cli(main, Config)
