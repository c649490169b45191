"""Adapt a CLIP base to image-text retrieval.

    python tasks/retrieval/train.py                                     # embedded base, demo data, SHERL
    python tasks/retrieval/train.py --data.root DIR --base ViT-B-32:openai --adapter.kind lora

Reads top to bottom: data, base, adapter and head, batches, loss, training, report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vlkit.adapters import ADAPTERS
from vlkit.cli.config import kinds
from vlkit.cli.config import run as cli
from vlkit.data.transforms import image_transform
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.load import load_base
from vlkit.encoders.tokenizer import warn_of_cut_texts
from vlkit.engine.config import CachedRunConfig
from vlkit.engine.fit import fit
from vlkit.engine.loader import EpochLoader, make_loader
from vlkit.engine.prepare import prepare
from vlkit.engine.run import Forward, Run, step_memory
from vlkit.tap_cache.maker import CachedLoader
from vlkit.tap_cache.pairs import cached_pairs
from vlkit.tasks.contrastive import example_losses, gather_pairs, require_negatives
from vlkit.tasks.retrieval.data import ImageTextPairs, PairCollate
from vlkit.tasks.retrieval.evaluate import COLUMNS, Embedder, evaluate_split
from vlkit.tasks.retrieval.losses import Loss, contrastive_loss
from vlkit.tasks.retrieval.model import adapter_config, build_model, zero_shot
from vlkit.tasks.retrieval.task import TASK
from vlkit.tasks.splits import data_identity, reported_split
from vlkit.tasks.two_tower import HeadOptions, TwoTower


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
    """Split to report on; if missing, the validation split."""
    every_caption: bool = False
    """Make each caption a separate example (an epoch is all pairs); false: one example per image, with a random
    caption in each epoch."""
    augment: Literal["none", "crop", "flip"] = "none"
    """Augmentation of training images; flip mirrors half of them (not for captions that say left or right)."""


@dataclass
class Config(CachedRunConfig):
    """Adapt a CLIP base to image-text retrieval."""

    base: str = "tiny"
    """Base: tiny (embedded), ARCH, ARCH:TAG or ARCH:FILE of open_clip, hf:NAME_OR_FOLDER (CLIP or SigLIP of
    transformers), photos, or a pair timm:NAME+hf:NAME."""
    context_length: int | None = None
    """Tokens per text; default: the base's own. Position embeddings are resized; the adapter records the value."""
    data: Data = field(default_factory=Data)
    adapter: Any = kinds(ADAPTERS, "sherl")
    head: HeadOptions = field(default_factory=HeadOptions)
    loss: Loss = field(default_factory=Loss)
    bucket: bool = False
    """Fill batches with captions of similar length to reduce padding: useful if the text tower takes much of the time.
    The negatives of a caption then have about the same length."""
    epochs: int = 16
    batch_size: int = 128
    lr: float = 3e-3
    evaluate_every: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.augment != "none":
            self.refuse_cache(f"--data.augment {self.data.augment}", "each image is different")


def main(config: Config) -> None:
    run = Run.open(config, TASK.name)
    dataset = TASK.dataset(config.data.root)
    test = reported_split(dataset, config.data)
    base = load_base(config.base, context_length=config.context_length)
    transform = image_transform(base.preprocess, config.data.augment)
    pairs = ImageTextPairs(dataset, config.data.train, transform, config.data.every_caption)
    if config.loss.kind != "siglip":
        require_negatives(min(config.batch_size, len(pairs)), len(pairs.records))
    warn_of_cut_texts(base.tokenize, pairs.captions, "training captions")

    # Measured before the adapter is built: full fine-tuning and LoRA change the base's own modules.
    untrained = zero_shot(base)
    run.fabric.setup_module(untrained)
    before = evaluate_split(Embedder(untrained, base, run.fabric), dataset, test)

    two_tower = build_model(base, config.adapter, config.head)
    model = run.fabric.setup_module(two_tower)
    collate = PairCollate(base.tokenize, base.text.trim)
    loader = training_batches(run, config, pairs, collate, two_tower, base)

    def loss_of(forward: Forward, batch: tuple[Tensor, Tensor, Tensor], epoch: float) -> Tensor:
        pixels, ids, groups = batch
        images, texts, scale, bias = forward(pixels, ids, chunk=config.loss.chunk)
        return contrastive_loss(gather_pairs(images, texts, groups, run.fabric), scale, bias, config.loss, epoch)

    def evaluate(split: str = config.data.validation) -> dict[str, float]:
        return evaluate_split(Embedder(two_tower, base, run.fabric), dataset, split)

    prepare(run, config.adapter, two_tower, lambda: pairs, collate, loss_of, config.batch_size, example_losses)
    identity = {"base": base.identity, **data_identity(dataset, config.data.train, config.data.validation)}
    result = fit(run, model, loader, loss_of, evaluate, primary="rsum", identity=identity)
    run.finish(
        result,
        two_tower,
        adapter_config(base, config.adapter, config.head, evaluate(test)),
        split=test,
        before=before,
        memory=step_memory(run, two_tower, loader, loss_of),
        data={"name": dataset.name, "train pairs": len(pairs)},
        columns=COLUMNS,
    )


def training_batches(
    run: Run, config: Config, pairs: ImageTextPairs, collate: PairCollate, model: TwoTower, base: ClipBase
) -> EpochLoader | CachedLoader:
    """Batches of images and captions, or of their cached taps (``--cache``)."""
    lengths = pairs.lengths(lambda texts: base.text.real(base.tokenize(texts)).sum(1)) if config.bucket else None
    if not config.cache:
        return make_loader(pairs, config, run.fabric, collate, lengths)
    cached = cached_pairs(config.cache, config.cache_dtype, pairs, model, base, run.fabric)
    return cached.loader(make_loader(cached, config, run.fabric, cached.collate, lengths))


if __name__ == "__main__":
    cli(main, Config)
