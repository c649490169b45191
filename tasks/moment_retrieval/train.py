"""Adapt a CLIP base to moment retrieval: a long video and a sentence -> when it happens, and which clips show it best.

    python tasks/moment_retrieval/train.py                               # embedded base, demo films, R2-Tuning
    python tasks/moment_retrieval/train.py --data.root DIR --base ViT-B-32:openai --head.hidden 256 --batch_size 128

Reads top to bottom: data, base, model, batches, loss, training, report.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from vlkit.cli.config import kinds
from vlkit.cli.config import run as cli
from vlkit.data.manifest import Dataset
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.load import load_base
from vlkit.encoders.stored_weights import with_format
from vlkit.encoders.text_side import TextSide, text_side
from vlkit.encoders.tokenizer import warn_of_cut_texts
from vlkit.engine.config import CachedRunConfig
from vlkit.engine.fit import fit
from vlkit.engine.loader import EpochLoader, make_loader
from vlkit.engine.prepare import prepare
from vlkit.engine.run import Forward, Run, step_memory
from vlkit.errors import UserError
from vlkit.tap_cache.clips import ClipTapCache
from vlkit.tap_cache.images import CachedImages, cached_images
from vlkit.tap_cache.maker import CachedLoader, TapCache
from vlkit.tasks.moment_retrieval.baseline import baseline_metrics
from vlkit.tasks.moment_retrieval.data import (
    ClipsReader,
    MomentBatch,
    MomentCollate,
    MomentExamples,
    default_fps,
    is_labelled,
)
from vlkit.tasks.moment_retrieval.evaluate import MomentFinder, evaluate_split
from vlkit.tasks.moment_retrieval.head import MomentOptions
from vlkit.tasks.moment_retrieval.losses import MomentLoss, moment_losses
from vlkit.tasks.moment_retrieval.model import METHODS, MomentModel, adapter_config, build_model
from vlkit.tasks.moment_retrieval.task import TASK
from vlkit.tasks.moment_retrieval.windows import WindowOptions, resolved
from vlkit.tasks.splits import data_identity, reported_split

log = logging.getLogger(__name__)


@dataclass
class Data:
    """Dataset to train on."""

    root: Path | None = None
    """Prepared dataset (data_prep/*); default: the demo dataset, made on first use."""
    train: str = "train"
    """Split to train on."""
    validation: str = "val"
    """Split that chooses the best checkpoint."""
    test: str = "test"
    """Split to report on; if missing, or without labels, the validation split."""


@dataclass
class Config(CachedRunConfig):
    """Adapt a CLIP base to moment retrieval, highlights and summaries of long videos."""

    base: str = "tiny"
    """Base: tiny (embedded), ARCH, ARCH:TAG or ARCH:FILE of open_clip."""
    fps: float | None = None
    """Clips per second, each read by one frame; default: that of the dataset (0.5 for QVHighlights)."""
    data: Data = field(default_factory=Data)
    adapter: Any = kinds(METHODS, "sherl")
    head: MomentOptions = field(default_factory=lambda: MomentOptions(hidden=64, match=True))
    loss: MomentLoss = field(default_factory=MomentLoss)
    windows: WindowOptions = field(default_factory=WindowOptions)
    cache: bool | Path | None = None
    """Store the states of the frozen towers for each video on disk, in this folder or (true) in vlkit's cache folder;
    its size is logged first. Default: true if the method has an early route, else false."""
    before: bool = True
    """Measure fixed windows, ranked by the base alone, on the test split before training, too; false starts sooner."""
    epochs: int = 4
    batch_size: int = 16
    """Queries per step, all processes together."""
    queries_per_video: int = 4
    """Queries about one video that follow each other, if it has as many: a step reads and adapts its frames once for
    all of them (published: 1)."""
    lr: float = 2e-3
    weight_decay: float = 1e-4
    clip: float = 35.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fps is not None and not 0 < self.fps <= 60:
            raise UserError(f"--fps {self.fps}: must be above 0 and at most 60 clips a second")
        if self.queries_per_video < 1:
            raise UserError(f"--queries_per_video {self.queries_per_video}: must be at least 1")
        self.choose_cache(self.adapter.has_early_route)


def main(config: Config) -> None:
    run = Run.open(config, TASK.name)
    dataset = TASK.dataset(config.data.root)
    test = labelled_split(dataset, config.data)
    base = load_base(with_format(config.base, config.base_weights))
    text = text_side("clip", base)
    reader = ClipsReader(base.preprocess, config.fps or default_fps(dataset))
    splits = {name: MomentExamples(dataset, name, reader) for name in {config.data.validation, test}}
    examples = MomentExamples(dataset, config.data.train, reader, training=True)
    has_moments = examples.annotation == "moments"
    warn_of_cut_texts(text, examples.texts, "training queries")
    post = resolved(config.windows, dataset.source)
    measured = (base, run.fabric, splits[config.data.validation], splits[test], post)
    # A method without cache may change the base's own modules: then the base is measured before it is built.
    control = baseline_metrics(*measured) if config.before and not config.cache else None

    finder_model = build_model(base, config.adapter, config.head, has_moments)
    model = run.fabric.setup_module(finder_model)
    caches = {name: open_cache(run, config, own, finder_model, base, text) for name, own in splits.items()}
    if config.before and control is None:
        control = baseline_metrics(*measured, caches)
    before, length = control or ({}, 0.0)
    loader = training_batches(run, config, examples, finder_model, base, text)
    finder = MomentFinder(finder_model, text, run.fabric, post)

    def loss_of(forward: Forward, batch: MomentBatch, epoch: float) -> dict[str, Tensor]:
        predicted = forward(batch.frames, batch.ids, batch.videos)
        windows = batch.windows if has_moments else None
        return moment_losses(predicted, windows, batch.saliency, batch.positive, config.loss, batch.videos)

    def evaluate(split: str = config.data.validation) -> dict[str, float]:
        return evaluate_split(finder, splits[split], caches[split])

    prepare(run, config.adapter, finder_model, lambda: examples, MomentCollate(text.tokenize), loss_of)
    primary = "map" if has_moments else "hl_map"
    identity = {"base": base.identity, **data_identity(dataset, config.data.train, config.data.validation)}
    result = fit(run, model, loader, loss_of, evaluate, primary=primary, identity=identity)
    after = evaluate(test)
    run.finish(
        result,
        finder_model,
        adapter_config(base, config.adapter, config.head, has_moments, {"fps": reader.fps, **post}, after),
        split=test,
        before=before,
        memory=step_memory(run, finder_model, loader, loss_of),
        data={"name": dataset.name, "train queries": len(examples), "train videos": videos_of(examples)},
        columns={name: key for name, key in COLUMNS.items() if key in after},
        first_row=f"windows of {length:g} s",
        more={"before_is": f"fixed windows of {length:g} s, ranked by the base alone", "fps": reader.fps, **post},
    )


COLUMNS = {**TASK.scores, "HIT@1": "hl_hit1"}
"""Heading -> metric, for the table of results."""


def labelled_split(dataset: Dataset, data: Data) -> str:
    """The split to report on: the validation split where the test split has no labels."""
    test = reported_split(dataset, data)
    if not any(is_labelled(record) for record in dataset.records(test)):
        log.info("split %r of %s has no labels: the report is on %r", test, dataset.name, data.validation)
        return data.validation
    return test


def videos_of(examples: MomentExamples) -> int:
    """Number of distinct videos."""
    return len({record["video"] for record in examples.records})


def open_cache(
    run: Run, config: Config, examples: MomentExamples, model: MomentModel, base: ClipBase, text: TextSide
) -> CachedImages | None:
    """The caches of the states of both towers for a split; None without ``--cache``."""
    if not config.cache:
        return None
    mean = sum(line.clips for line in examples.timelines) / len(examples)

    def clip_cache(*given: Any, **options: Any) -> TapCache:
        cache = ClipTapCache(*given, **options)
        cache.mean_frames = mean
        return cache

    given = (config.cache, config.cache_dtype, examples, model, base, text, run.fabric)
    sampling = {"frames": "the middle of each clip"}
    preprocess = base.preprocess.to_dict()
    return cached_images(*cast(Any, given), preprocess=preprocess, name="moments", sampling=sampling, cache=clip_cache)


def training_batches(
    run: Run, config: Config, examples: MomentExamples, model: MomentModel, base: ClipBase, text: TextSide
) -> EpochLoader | CachedLoader:
    """Batches of frames and queries, or of their cached states."""
    cached = open_cache(run, config, examples, model, base, text)
    order: dict[str, Any] = {
        "lengths": [line.clips for line in examples.timelines],  # videos of similar length: less padding
        "groups": examples.videos,
        "together": config.queries_per_video,
    }
    if cached is None:
        return make_loader(examples, config, run.fabric, MomentCollate(text.tokenize), **order)
    collate = MomentCollate(cached.read, cached.stack)
    return cached.loader(make_loader(cached, config, run.fabric, collate, **order))


if __name__ == "__main__":
    cli(main, Config)
