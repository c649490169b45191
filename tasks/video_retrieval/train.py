"""Adapt a CLIP base to text-video retrieval.

    python tasks/video_retrieval/train.py                                   # embedded base, demo clips, SHERL
    python tasks/video_retrieval/train.py --data.root DIR --base ViT-B-32:openai --head.temporal transformer

Reads top to bottom: data, base, adapter and heads, the step with its loss, training, report.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.adapters import ADAPTERS
from vlkit.adapters.lst.fisher import fisher_due, start_from_fisher
from vlkit.cli.config import kinds, run
from vlkit.cli.show import Console, Table
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.data.video.clip_frames import Sampling
from vlkit.data.video.frame_batch import Frames
from vlkit.drawn.prepared import demo_dataset
from vlkit.encoders.load import load_base
from vlkit.engine.checkpoint import save_adapter
from vlkit.engine.fit import CachedRunConfig, fit, make_fabric, make_loader, open_run
from vlkit.engine.hardware import keep_freed_memory
from vlkit.engine.loader import EpochLoader
from vlkit.engine.run_folder import Report
from vlkit.errors import UserError
from vlkit.memory import StepMemory, measure_step
from vlkit.metrics.video import text_video_metrics
from vlkit.tap_cache.clips import ClipTapCache
from vlkit.tap_cache.pairs import cached_pairs
from vlkit.tasks.contrastive import example_losses, gather_pairs, info_nce
from vlkit.tasks.video_retrieval.data import ClipReader, RecordFrames, VideoCollate, VideoTextPairs, hold_out
from vlkit.tasks.video_retrieval.evaluate import (
    VideoEmbedder,
    adapter_config,
    build_model,
    embed_records,
    protocol,
    zero_shot,
)
from vlkit.tasks.video_retrieval.model import VideoHeadOptions, VideoText

log = logging.getLogger(__name__)

LEAST_CHUNK = 32  # frames; smaller lots waste time and save little


@dataclass
class Data:
    """What to train on."""

    root: Path | None = None
    """Prepared dataset (data_prep/*); default: the demo dataset, made on first use."""
    train: str = "train"
    """Split to train on."""
    validation: str = "val"
    """Split that chooses the best checkpoint; if the dataset has none, a part of the training videos is held out."""
    test: str = "test"
    """Split that is reported; if the dataset has none, the validation split."""
    hold_out: float = 0.1
    """Share of the training videos that is held out where there is no validation split."""
    every_caption: bool = False
    """Each sentence is an example of its own (an epoch is all pairs; CLIP4Clip's sentence expansion); else each video
    is one, with another sentence each epoch."""
    keep: float = 2.0
    """GiB of decoded frames kept in memory, in each worker; what does not fit is decoded each time. 0 = none."""

    def __post_init__(self) -> None:
        if not 0 < self.hold_out < 1:
            raise UserError(f"--data.hold_out {self.hold_out}: must be a share between 0 and 1")
        if self.keep < 0:
            raise UserError(f"--data.keep {self.keep}: must be 0 or more (GiB)")


@dataclass
class Loss:
    """What is minimised: symmetric cross-entropy over the pairs of a batch."""

    kind: Literal["infonce", "clip4clip"] = "infonce"
    """Other sentences of the same video: left out (infonce), or counted as negatives, as published (clip4clip)."""


@dataclass
class Config(CachedRunConfig):
    """Adapt a CLIP base to text-video retrieval."""

    base: str = "tiny"
    """tiny (embedded), ARCH, ARCH:TAG or ARCH:FILE of open_clip."""
    data: Data = field(default_factory=Data)
    frames: int = 12
    """Frames a video; shorter videos give all they have."""
    sampling: Sampling = "uniform"
    """uniform: evenly spread; segment: one of each of as many equal parts, at random in training."""
    frame_chunk: Literal["auto"] | int = "auto"
    """Frames through the image tower at once; memory does not grow with --frames, and frames beyond one chunk are
    encoded twice. auto: as many as a batch has videos, 32 at least; 0 = all, each once."""
    adapter: Any = kinds(ADAPTERS, "sherl")
    head: VideoHeadOptions = field(default_factory=VideoHeadOptions)
    loss: Loss = field(default_factory=Loss)
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
            self.refuse_cache(f"--sampling {self.sampling}", "a clip gives other frames")


def main(config: Config) -> None:
    fabric = make_fabric(config.device, config.precision, config.seed)
    folder = open_run(config, "video_retrieval", fabric)
    keep_freed_memory()

    dataset = Dataset.open(config.data.root or demo_dataset("video_retrieval"), "video_retrieval")
    test = config.data.test if config.data.test in dataset.splits else config.data.validation
    base = load_base(config.base)
    reader = ClipReader(base.preprocess, config.frames, config.sampling)
    train_frames, validation_frames, training, validation = splits_of(dataset, config.data, reader)
    test_frames = RecordFrames(dataset, test, reader)
    pairs = VideoTextPairs(train_frames, training, config.data.every_caption)

    # Measured before the adapter is built: full fine-tuning and LoRA change the base's own modules.
    untrained = zero_shot(base)
    fabric.setup_module(untrained)
    before = text_video_metrics(*embed_records(VideoEmbedder(untrained, base, fabric, reader), test_frames, label=test))

    video_text = build_model(base, config.adapter, config.head)
    model = fabric.setup_module(video_text)
    embedder = VideoEmbedder(video_text, base, fabric, reader)
    collate = VideoCollate(base.tokenize, base.text.trim)
    if config.cache:
        options = {"name": "clip", "sampling": train_frames.source.key(), "cache": ClipTapCache}
        cached = cached_pairs(config.cache, config.cache_dtype, pairs, video_text.towers, base, fabric, **options)
        loader = cached.loader(make_loader(cached, config, fabric, cached.collate))
    else:
        loader = make_loader(pairs, config, fabric, collate)

    def losses_of(forward: Callable[..., Any], batch: tuple[Frames, Tensor, Tensor]) -> Iterator[Tensor]:
        """Of each video and its sentence, with the others of a batch as negatives."""
        frames, ids, groups = batch
        return example_losses(
            list(zip(frames.videos(), ids.split(1), strict=True)),
            lambda pair: forward(*pair),
            lambda videos, texts, scale: info_nce(
                gather_pairs(videos, texts, negatives(groups, config, fabric)), scale
            ),
        )

    if fisher_due(config.adapter, folder):
        start_from_fisher(video_text, pairs, collate, losses_of, config, fabric, config.batch_size)

    def step(batch: tuple[Frames, Tensor, Tensor], epoch: float) -> dict[str, Tensor]:
        frames, ids, groups = batch
        videos, texts, scale = model(frames, ids, chunk_of(config, frames))
        loss = info_nce(gather_pairs(videos, texts, negatives(groups, config, fabric), fabric), scale)
        fabric.backward(loss)
        return {"loss": loss}

    identity = {"base": base.identity, "data": {"name": dataset.name, "train": len(pairs)}}
    result = fit(
        model,
        loader,
        step,
        lambda: text_video_metrics(*embed_records(embedder, validation_frames, validation, "validation")),
        primary="rsum",
        config=config,
        folder=folder,
        fabric=fabric,
        identity=identity,
    )
    embedded = embed_records(embedder, test_frames, label=test)
    after = text_video_metrics(*embedded)
    if fabric.is_global_zero:
        save_adapter(folder.path, video_text, adapter_config(base, config.adapter, config.head, reader, after))
    memory = memory_of_a_step(video_text, loader, config, fabric)
    report = Report(
        task="video_retrieval",
        base=base.identity,
        adapter=asdict(config.adapter),
        split=test,
        before=before,
        after=after,
        **result.costs(memory, fabric.device),
        seed=config.seed,
        more={"frames": config.frames, "sampling": config.sampling, "protocol": protocol(embedded)},
    )
    if fabric.is_global_zero:
        counts = {"train videos": len(training), "train pairs": len(pairs), "validation videos": len(validation)}
        folder.write_report(report, data={"name": dataset.name, **counts})
        show(report, folder.path)


def splits_of(
    dataset: Dataset, data: Data, reader: ClipReader
) -> tuple[RecordFrames, RecordFrames, list[Record], list[Record]]:
    """Frames of the training and of the validation split, and which of their records to train and validate on."""
    keep = int(data.keep * 2**30)
    train_frames = RecordFrames(dataset, data.train, reader, keep)
    if data.validation in dataset.splits:
        validation_frames = RecordFrames(dataset, data.validation, reader, keep)
        return train_frames, validation_frames, train_frames.records, validation_frames.records
    training, validation = hold_out(train_frames.records, data.hold_out)
    log.info(
        "%s has no split %r: %d of its %d %s clips are held out to choose the best checkpoint",
        *(dataset.name, data.validation, len(validation), len(train_frames.records), data.train),
    )
    return train_frames, train_frames, training, validation


def chunk_of(config: Config, frames: Frames) -> int:
    """Frames through the image tower at once."""
    return max(len(frames.mask), LEAST_CHUNK) if config.frame_chunk == "auto" else config.frame_chunk


def negatives(groups: Tensor, config: Config, fabric: Fabric) -> Tensor:
    """Group numbers: pairs of one group are not each other's negatives. clip4clip: each pair is its own group."""
    if config.loss.kind == "infonce":
        return groups
    return torch.arange(len(groups), device=groups.device) + fabric.global_rank * len(groups)


def memory_of_a_step(model: VideoText, loader: EpochLoader, config: Config, fabric: Fabric) -> StepMemory:
    """What one step of this run takes. The weights move: call it when the adapter is saved."""
    frames, ids, groups = fabric.to_device(next(iter(loader.batches(0, 1))))

    def forward() -> Tensor:
        with fabric.autocast():
            videos, texts, scale = model(frames, ids, chunk_of(config, frames))
        return info_nce(gather_pairs(videos, texts, negatives(groups, config, fabric)), scale)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    return measure_step(model.train(), forward, optimizer, timed=3)


def show(report: Report, folder: Path) -> None:
    """Print the numbers of the run and where the adapter lies."""
    title = f"{report.split} split, percent, {report.more['protocol']}"
    table = Table("", "t2v R@1", "R@5", "R@10", "v2t R@1", "R@5", "R@10", "rsum", title=title)
    for name, metrics in (("zero-shot", report.before), (report.adapter["kind"], report.after)):
        keys = [f"{direction}_r{k}" for direction in ("t2v", "v2t") for k in (1, 5, 10)]
        table.add_row(name, *(f"{metrics[key]:.1f}" for key in [*keys, "rsum"]))
    console = Console()
    console.print(table)
    console.print(
        f"trained {report.trainable_parameters:,} of {report.total_parameters:,} parameters; "
        f"kept for backward {report.saved_activation_bytes / 2**20:.1f} MiB a step; "
        f"peak {report.peak_memory_bytes / 2**20:.0f} MiB; {report.train_seconds:.0f} s of training",
        highlight=False,
    )
    console.print(f"adapter: {folder}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run(main, Config)
