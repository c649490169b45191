"""Adapt a CLIP base to image-text retrieval.

    python tasks/retrieval/train.py                                     # embedded base, demo data, SHERL
    python tasks/retrieval/train.py --data.root DIR --base ViT-B-32:openai --adapter.kind lora

Reads top to bottom: data, base, adapter and head, batches, loss, training, report.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vlkit.adapters import ADAPTERS
from vlkit.adapters.linear import LinearOptions
from vlkit.cli.config import kinds
from vlkit.cli.config import run as cli
from vlkit.data.manifest import Dataset
from vlkit.data.transforms import image_transform
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
from vlkit.export.peft import add_peft_folder
from vlkit.tap_cache.maker import CachedLoader
from vlkit.tap_cache.pairs import cached_pairs
from vlkit.tasks.contrastive import example_losses, gather_pairs, require_negatives
from vlkit.tasks.retrieval.cached import CachedSplit
from vlkit.tasks.retrieval.data import ImageTextPairs, PairCollate
from vlkit.tasks.retrieval.evaluate import COLUMNS, Embedder, calibrated_search, evaluate_split
from vlkit.tasks.retrieval.losses import Loss, contrastive_loss
from vlkit.tasks.retrieval.model import adapter_config, build_model, zero_shot
from vlkit.tasks.retrieval.start import Start, closed_form_start
from vlkit.tasks.retrieval.task import TASK
from vlkit.tasks.splits import data_identity, reported_split
from vlkit.tasks.two_tower import HeadOptions, TwoTower


@dataclass
class Data:
    """Dataset to train on."""

    root: Path | None = None
    """Prepared dataset (data_prep/*), WebDataset tars ("shards/{000..099}.tar", or their folder), Parquet files, or a
    Hugging Face dataset (folder, hf:ORG/NAME); default: the demo dataset, made on first use."""
    columns: str = ""
    """Columns of rows: image=COLUMN,texts=COLUMN,split=COLUMN; guessed from names and types if left out. For tars,
    fields of the .json beside an image: texts=FIELD,split=FIELD."""
    hold_out: float | None = None
    """Share of the images of rows or tars for validation, and as many for testing, where they name no such splits;
    default: 0.1. Evaluate with the same share."""
    train: str = "train"
    """Split to train on."""
    validation: str = "val"
    """Split that chooses the best checkpoint."""
    test: str = "test"
    """Split to report on; if missing, the validation split."""
    every_caption: bool = False
    """Make each caption a separate example (an epoch is all pairs); false: one example per image, with a random
    caption in each epoch."""
    limit: int = 0
    """Train on this many images, drawn once and the same for every seed of the run; 0 = all."""
    augment: Literal["none", "crop", "flip"] = "none"
    """Augmentation of training images; flip mirrors half of them (not for captions that say left or right)."""
    draft: bool = False
    """Decode JPEGs that are much larger than the base's input at a half, a quarter or an eighth of their size, never
    below twice the input: faster, pixels differ slightly."""


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
    start: Literal["auto", "random", "ridge"] = "auto"
    """Initial projections of a pair of encoders. ridge: computed in closed form from the frozen features of the
    training data (the metrics before training are those of this start); random; auto: ridge for a pair, and the base's
    joint space where there is one."""
    before: bool = True
    """Measure the test split before training, too; false starts sooner."""
    cache_test: bool = False
    """With --cache, also evaluate the test split from the cache: faster when many runs share it, rounded as the taps
    are. The validation split always comes from the cache."""
    bucket: bool = False
    """Fill batches with captions of similar length to reduce padding: useful if the text tower takes much of the time.
    The negatives of a caption then have about the same length."""
    epochs: int = 16
    batch_size: int = 128
    lr: float = 3e-3
    evaluate_every: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache_test and not self.cache:
            raise UserError("--cache_test: needs --cache; give both")
        if self.data.augment != "none":
            self.refuse_cache(f"--data.augment {self.data.augment}", "each image is different")
        self.choose_cache(self.data.root is None and self.adapter.has_early_route)


def main(config: Config) -> None:
    run = Run.open(config, TASK.name)
    dataset = TASK.dataset(config.data.root, config.data.columns, config.data.hold_out)
    test = reported_split(dataset, config.data)
    name = with_format(config.base, config.base_weights)
    base = load_base(name, context_length=config.context_length)
    if config.data.draft:
        dataset = replace(dataset, min_side=base.preprocess.draft_side)
    transform = image_transform(base.preprocess, config.data.augment)
    pairs = ImageTextPairs(dataset, config.data.train, transform, config.data.every_caption, config.data.limit)
    if config.loss.kind != "siglip":
        require_negatives(min(config.batch_size, len(pairs)), len(pairs.records))
    warn_of_cut_texts(base.tokenize, pairs.captions, "training captions")

    # Measured before the adapter is built: full fine-tuning and LoRA change the base's own modules.
    start = find_start(run, config, base, dataset)
    before = measure_before(run, config, base, start, dataset, test) if config.before else {}

    two_tower = build_model(base, config.adapter, config.head)
    if start is not None:
        start.fill(two_tower)
    model = run.fabric.setup_module(two_tower)
    collate = PairCollate(base.tokenize, base.text.trim)
    loader = training_batches(run, config, pairs, collate, two_tower, base)

    def loss_of(forward: Forward, batch: tuple[Tensor, Tensor, Tensor], epoch: float) -> Tensor:
        pixels, ids, groups = batch
        images, texts, scale, bias = forward(pixels, ids, chunk=config.loss.chunk)
        pairs = gather_pairs(images, texts, groups, run.fabric)
        return contrastive_loss(pairs, scale, bias, config.loss, epoch, run.fabric)

    def evaluate(split: str = config.data.validation) -> dict[str, float]:
        cached = splits.get(split)
        return cached.metrics() if cached else evaluate_split(Embedder(two_tower, base, run.fabric), dataset, split)

    splits = cached_splits(run, config, two_tower, base, dataset, test)
    prepare(run, config.adapter, two_tower, lambda: pairs, collate, loss_of, config.batch_size, example_losses)
    identity = {"base": base.identity, **data_identity(dataset, config.data.train, config.data.validation)}
    result = fit(run, model, loader, loss_of, evaluate, primary="rsum", identity=identity)
    search = calibrated_search(Embedder(two_tower, base, run.fabric), dataset, config.data.validation)
    run.finish(
        result,
        two_tower,
        adapter_config(base, config.adapter, config.head, evaluate(test), search),
        split=test,
        before=before,
        memory=step_memory(run, two_tower, loader, loss_of),
        data={"name": dataset.name, "train pairs": len(pairs)},
        columns=COLUMNS,
        first_row="zero-shot" if start is None else "ridge",
        more={} if start is None else {"before_is": "ridge regression of captions on frozen features"},
    )
    if run.fabric.is_global_zero:
        add_peft_folder(run.folder.path, config.adapter)


def find_start(run: Run, config: Config, base: ClipBase, dataset: Dataset) -> Start | None:
    """The closed-form start of a pair of encoders; None where the projections start otherwise.

    Raises:
        UserError: ``--start ridge`` for a base that has a joint space.
    """
    if config.start == "ridge" and base.joint_dim is None:
        raise UserError(f"--start ridge: base {config.base} has a joint space to start from; drop the flag")
    if config.start == "random" or base.joint_dim is None:
        return None
    pairs = ImageTextPairs(dataset, config.data.train, image_transform(base.preprocess), limit=config.data.limit)
    return closed_form_start(base, config.head, pairs, run.fabric, config.cache, config.cache_dtype)


def measure_before(
    run: Run, config: Config, base: ClipBase, start: Start | None, dataset: Dataset, test: str
) -> dict[str, float]:
    """Metrics of the base without adapter, with the closed-form start if there is one."""
    if start is None:
        untrained = zero_shot(base)
    else:
        untrained = build_model(base, LinearOptions(), config.head).requires_grad_(False).eval()
        start.fill(untrained)
    run.fabric.setup_module(untrained)
    if config.cache and config.cache_test:
        return CachedSplit(untrained, base, dataset, test, config.cache, config.cache_dtype, run.fabric).metrics()
    return evaluate_split(Embedder(untrained, base, run.fabric), dataset, test)


def cached_splits(
    run: Run, config: Config, model: TwoTower, base: ClipBase, dataset: Dataset, test: str
) -> dict[str, CachedSplit]:
    """The splits that are evaluated from the tap cache (``--cache``), by name."""
    if not config.cache:
        return {}
    names = {config.data.validation, *([test] if config.cache_test else [])}
    where, stored = config.cache, config.cache_dtype
    return {name: CachedSplit(model, base, dataset, name, where, stored, run.fabric) for name in names}


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
