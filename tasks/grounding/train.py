"""Adapt a CLIP base and a text base to visual grounding: a text about an image -> its box.

    python tasks/grounding/train.py                                     # embedded bases, demo data, SHERL
    python tasks/grounding/train.py --data.root DIR --base ViT-B-32:openai --text_base google-t5/t5-base \
        --image_size 384 --data.augment crop

Reads top to bottom: data, bases, adapters and heads, batches, loss, training, report.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vlkit.adapters import ADAPTERS
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
from vlkit.engine.hardware import attention_for
from vlkit.engine.loader import EpochLoader, make_loader
from vlkit.engine.prepare import prepare
from vlkit.engine.run import Forward, Run, step_memory
from vlkit.errors import UserError
from vlkit.tap_cache.images import cached_images
from vlkit.tap_cache.maker import CachedLoader
from vlkit.tasks import splits
from vlkit.tasks.fusion import FusionOptions
from vlkit.tasks.grounding.baseline import blind_boxes, blind_metrics
from vlkit.tasks.grounding.data import Augment, BoxBatch, BoxCollate, BoxedImages, BoxTransform, Shape
from vlkit.tasks.grounding.evaluate import TESTS, Locator, evaluate_split, records_of
from vlkit.tasks.grounding.head import Grounder, GroundingOptions
from vlkit.tasks.grounding.losses import BoxLoss, grounding_loss
from vlkit.tasks.grounding.model import adapter_config, build_model, identities
from vlkit.tasks.grounding.task import TASK
from vlkit.tasks.splits import data_identity


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
    """Split to report on; if missing, testA and testB together; if those are missing, the validation split."""
    texts: int = 8
    """Most texts per image in a step; the image is encoded once for all of them."""
    shape: Shape = "squash"
    """How the whole image is fitted into the square input: squash scales each side separately, letterbox keeps the
    aspect ratio and pads the rest."""
    augment: Augment = "none"
    """Augmentation of training images: color; or crop (color, and a crop around all boxes, at least 3/4 of each
    side).
    """
    flip: bool = False
    """Mirror half of the training images, and swap left and right in their texts."""

    def __post_init__(self) -> None:
        if self.texts < 1:
            raise UserError(f"--data.texts {self.texts}: must be at least 1")


@dataclass
class Config(CachedRunConfig):
    """Adapt a CLIP base and a text base to visual grounding."""

    base: str = "tiny"
    """Image base: tiny, ARCH, ARCH:TAG or ARCH:FILE of open_clip, photos, or a pair timm:NAME+hf:NAME."""
    text_base: str = "clip"
    """Text base: clip (the image base's text tower), tiny (embedded T5), a T5, BERT or similar model of the hub, or a
    folder."""
    image_size: int | None = None
    """Side of the input in pixels; default: that of the base."""
    data: Data = field(default_factory=Data)
    adapter: Any = kinds(ADAPTERS, "sherl")
    fusion: FusionOptions = field(default_factory=lambda: FusionOptions(layers=2, neck=2, dropout=0.0, match=True))
    head: GroundingOptions = field(default_factory=GroundingOptions)
    loss: BoxLoss = field(default_factory=BoxLoss)
    cache: bool | Path | None = None
    epochs: int = 12
    batch_size: int = 16
    """Images per step with their texts, all processes together."""
    lr: float = 1.5e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.augment != "none":
            self.refuse_cache(f"--data.augment {self.data.augment}", "each image is different")
        if self.data.flip:
            self.refuse_cache("--data.flip true", "each image is different")
        self.choose_cache(self.data.root is None and self.adapter.has_early_route)


def main(config: Config) -> None:
    run = Run.open(config, TASK.name)
    dataset = TASK.dataset(config.data.root)
    test = reported_split(dataset, config.data)
    base = load_base(with_format(config.base, config.base_weights), image_size=config.image_size)
    text = text_side(with_format(config.text_base, config.base_weights), base)
    transform = BoxTransform(base.preprocess, config.data.shape, config.data.augment)

    def examples_of(texts: int) -> BoxedImages:
        data, several = config.data, config.head.queries > 1
        return BoxedImages(dataset, data.train, transform, texts, data.flip, several)

    examples = examples_of(config.data.texts)
    warn_of_cut_texts(text, examples.texts, "training texts")
    before = before_training(dataset, config.data.train, test)

    adapter = config.adapter.for_fusion()
    grounder = build_model(base, text, adapter, config.fusion, config.head)
    model = run.fabric.setup_module(grounder)
    loader = training_batches(run, config, examples, grounder, base, text)

    def loss_of(forward: Forward, batch: BoxBatch, epoch: float) -> dict[str, Tensor]:
        predictions = forward(batch.pixels, batch.ids, batch.owner)
        count = run.fabric.all_reduce(batch.valid.sum().float(), reduce_op="mean")
        return grounding_loss(predictions, batch.boxes, batch.valid, config.loss, count)

    def evaluate(split: str = config.data.validation) -> dict[str, float]:
        return evaluate_split(Locator(grounder, base, text, run.fabric, config.data.shape), dataset, split)

    prepare(run, adapter, grounder, lambda: examples_of(1), BoxCollate(text.tokenize), loss_of)
    towers = identities(base, text)
    identity = {"base": towers, **data_identity(dataset, config.data.train, config.data.validation)}
    with attention_for(run.fabric.device):
        result = fit(run, model, loader, loss_of, evaluate, primary="acc@0.5", identity=identity)
    after = evaluate(test)
    run.finish(
        result,
        grounder,
        adapter_config(base, text, adapter, config.fusion, config.head, config.data.shape, config.image_size, after),
        split=test,
        before=before,
        memory=step_memory(run, grounder, loader, loss_of),
        data={"name": dataset.name, "train texts": examples.count, "train images": len(examples)},
        columns={key: key for key in after},
        first_row="best blind box",
        more={"before_is": "one box for all texts, chosen on the training split"},
    )


def reported_split(dataset: Dataset, data: Data) -> str:
    """The split to report on; see :class:`Data`."""
    if data.test == "test" and set(TESTS) & set(dataset.splits) and "test" not in dataset.splits:
        splits.reported_split(dataset, replace(data, test=data.validation))
        return "test"
    return splits.reported_split(dataset, data)


def before_training(dataset: Dataset, train: str, test: str) -> dict[str, float]:
    """Score of the best blind box of the training split on the test split."""
    records = records_of(dataset, train)
    return blind_metrics(blind_boxes(dataset, records), dataset, records_of(dataset, test))


def training_batches(
    run: Run, config: Config, examples: BoxedImages, model: Grounder, base: ClipBase, text: TextSide
) -> EpochLoader | CachedLoader:
    """Batches of images and texts, or of their cached taps (``--cache``)."""
    if not config.cache:
        return make_loader(examples, config, run.fabric, BoxCollate(text.tokenize))
    preprocess = {**base.preprocess.to_dict(), "shape": config.data.shape}
    given = (config.cache, config.cache_dtype, examples, model, base, text, run.fabric)
    cached = cached_images(*given, preprocess=preprocess)
    return cached.loader(make_loader(cached, config, run.fabric, BoxCollate(cached.read, cached.stack)))


if __name__ == "__main__":
    cli(main, Config)
