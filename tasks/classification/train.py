"""Adapt a CLIP base to image classification.

    python tasks/classification/train.py                                  # embedded base, demo data, SHERL
    python tasks/classification/train.py --data.root DIR --base ViT-B-32:openai --data.shots 16 --data.shots_seed 1
    python tasks/classification/train.py --data.root DIR --head.kind ridge        # no training steps: seconds

Reads top to bottom: data, base, class prompts, adapter and head, batches, loss, training, report.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vlkit.adapters import ADAPTERS
from vlkit.adapters.linear import LinearOptions
from vlkit.cli.config import kinds
from vlkit.cli.config import run as cli
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.data.transforms import image_transform
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.load import load_base
from vlkit.encoders.stored_weights import with_format
from vlkit.engine.config import CachedRunConfig
from vlkit.engine.fit import fit
from vlkit.engine.loader import EpochLoader, make_loader
from vlkit.engine.prepare import prepare
from vlkit.engine.run import Forward, Run, step_memory
from vlkit.errors import UserError
from vlkit.tap_cache.maker import CachedLoader
from vlkit.tasks.classification.cached import cached_labels
from vlkit.tasks.classification.data import LabelledImages, labels_of, warn_of_classes, warn_of_overlap
from vlkit.tasks.classification.dataset import Demo, classification_dataset
from vlkit.tasks.classification.evaluate import (
    Labeller,
    confusion_of,
    evaluate_records,
    metrics_of,
    most_frequent,
    score_records,
    write_confusion,
)
from vlkit.tasks.classification.fill import choose_cache, closed_form_memory, fill_head, finished
from vlkit.tasks.classification.heads import CLASSIFIERS, CacheOptions, ZeroshotOptions
from vlkit.tasks.classification.losses import Loss, balanced_weights, class_loss
from vlkit.tasks.classification.model import Classifier, adapter_config, build_model, identity_of
from vlkit.tasks.classification.prompts import PromptOptions, class_weights, prompts_of
from vlkit.tasks.classification.shots import few_shot
from vlkit.tasks.classification.task import TASK
from vlkit.tasks.splits import VALIDATION, data_identity, reported_split

NO_VALIDATION = "none"
"""Value of ``--data.validation`` to train without validation."""


@dataclass
class Data:
    """Dataset to train on."""

    root: Path | None = None
    """Prepared dataset (data_prep/image_folder.py), Parquet files, or a Hugging Face dataset (folder, hf:ORG/NAME);
    default: the demo dataset, made on first use."""
    demo: Demo = "kinds"
    """Demo dataset: kinds (drawn things in a style new to the base), or dark (the same images at half the exposure)."""
    columns: str = ""
    """Columns of rows: image=COLUMN,label=COLUMN,split=COLUMN; guessed from names and types if left out."""
    train: str = "train"
    """Split to train on."""
    validation: str = "val"
    """Split that chooses the best checkpoint; none (or no split "val") keeps the last weights, as the few-shot papers
    do."""
    test: str = "test"
    """Split to report on; if missing, the validation split."""
    shots: int = 0
    """Images per class to train on, drawn as in the few-shot papers (and at most 4 per class to validate on); 0 = all
    images."""
    shots_seed: int = 1
    """Seed of that draw (1, 2 and 3 in the papers)."""
    augment: Literal["none", "crop", "flip"] = "none"
    """Augmentation of training images: none, crop, or flip (crop, and mirror half of them)."""
    draft: bool = False
    """Decode JPEGs that are much larger than the base's input at a half, a quarter or an eighth of their size, never
    below twice the input: faster, pixels differ slightly."""


@dataclass
class Config(CachedRunConfig):
    """Adapt a CLIP base to image classification."""

    base: str = "tiny"
    """Base: tiny (embedded), ARCH, ARCH:TAG or ARCH:FILE of open_clip, hf:NAME_OR_FOLDER (CLIP or SigLIP of
    transformers), photos, or a pair timm:NAME+hf:NAME."""
    image_size: int | None = None
    """Side of the input in pixels; default: that of the base."""
    data: Data = field(default_factory=Data)
    prompts: PromptOptions = field(default_factory=PromptOptions)
    adapter: Any = kinds(ADAPTERS, "sherl")
    head: Any = kinds(CLASSIFIERS, "text")
    loss: Loss = field(default_factory=Loss)
    before: bool = True
    """Measure the base alone (or, without a joint space, the most frequent class) on the test split before training,
    too; false starts sooner."""
    epochs: int = 12
    batch_size: int = 64
    lr: float = 3e-3
    evaluate_every: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head.closed_form and self.adapter == ADAPTERS["sherl"]():
            self.adapter = LinearOptions()  # the default method has nothing to learn from such a head
        if self.head.closed_form and self.init is not None:
            raise UserError(f"--init {self.init}: a head {self.head.kind} is solved, not trained; leave it out")
        if self.data.augment != "none":
            self.refuse_cache(f"--data.augment {self.data.augment}", "each image is different")
        self.choose_cache(self.data.root is None and self.adapter.has_early_route)


def main(config: Config) -> None:
    run = Run.open(config, TASK.name)
    dataset = classification_dataset(config.data.root, config.data.demo, config.data.columns)
    test = tested_split(dataset, config.data)
    train, validation = training_records(dataset, config.data)
    warn_of_classes(dataset, train, dataset.records(test), config.head.reads_prompts)
    base = load_base(with_format(config.base, config.base_weights), image_size=config.image_size)
    if config.data.draft:
        dataset = replace(dataset, min_side=base.preprocess.draft_side)
    prompts = prompts_of(dataset, config.prompts)
    weights = class_weights(base, prompts, run.fabric) if base.joint_dim is None else None
    examples = LabelledImages(dataset, train, image_transform(base.preprocess, config.data.augment))
    before, note = {}, ""
    if config.before:
        before, note = measure_before(run, base, dataset, train, dataset.records(test), weights)

    classes = len(prompts.classes)
    classifier = build_model(base, config.adapter, config.head, classes, weights, len(train))
    model = run.fabric.setup_module(classifier)
    labeller = Labeller(classifier, base, run.fabric)
    seconds = fill_head(labeller, config.head, dataset, train)
    balance = balanced_weights(examples.labels, classes).to(run.fabric.device) if config.loss.balance else None

    def loss_of(forward: Forward, batch: tuple[Any, Tensor], epoch: float) -> Tensor:
        pixels, labels = batch
        return class_loss(forward(pixels), labels, config.loss, balance)

    def evaluate(records: list[Record] = validation, label: str = "validation images") -> dict[str, float]:
        return evaluate_records(labeller, dataset, records, label)

    if classifier.trains_by_steps(config.head):
        loader = training_batches(run, config, examples, classifier, base)
        prepare(run, config.adapter, classifier, lambda: examples, collate, loss_of)
        splits = (config.data.train, config.data.validation)
        identity = {"base": identity_of(base), **data_identity(dataset, *splits, classes=dataset.extra["classes"])}
        check = evaluate if validation else None
        result = fit(run, model, loader, loss_of, check, primary="top1", identity=identity)
        memory = step_memory(run, classifier, loader, loss_of)
    else:
        result = finished(run, evaluate if validation else None, len(train), seconds)
        memory = closed_form_memory(run, classifier, examples, config.batch_size)
    if isinstance(config.head, CacheOptions) and validation:
        choose_cache(labeller, config.head, dataset, validation)

    after = measure_after(run, labeller, dataset, test)
    run.finish(
        result,
        classifier,
        adapter_config(base, config.adapter, config.head, prompts, len(train), config.image_size, after),
        split=test,
        before=before,
        memory=memory,
        data={"name": dataset.name, "classes": classes, "train images": len(train), "validation": len(validation)},
        columns=TASK.scores,
        first_row=note,
        note=config.head.kind,
        more={"before_is": note, "head": asdict(config.head), "shots": config.data.shots},
    )


def tested_split(dataset: Dataset, data: Data) -> str:
    """The split to report on; every record that the run needs is checked."""
    if data.validation != NO_VALIDATION:
        return reported_split(dataset, data, held_out=True)
    for split in (data.train, data.test):
        dataset.read_ahead(split)
    return data.test


def training_records(dataset: Dataset, data: Data) -> tuple[list[Record], list[Record]]:
    """Records to train on, and to validate on (none without a validation split)."""
    absent = data.validation == VALIDATION and VALIDATION not in dataset.splits
    validation = [] if absent or data.validation == NO_VALIDATION else dataset.records(data.validation)
    train, validation = few_shot(dataset.records(data.train), validation, data.shots, data.shots_seed)
    warn_of_overlap(train, validation)
    return train, validation


def measure_before(
    run: Run, base: ClipBase, dataset: Dataset, train: list[Record], tested: list[Record], weights: Tensor | None
) -> tuple[dict[str, float], str]:
    """Metrics without the adapter, and what they are: the base with its class prompts, or the most frequent class.

    Measured before the adapter is built: full fine-tuning and LoRA change the base's own modules.
    """
    if weights is None:
        return most_frequent(train, tested, dataset), "most frequent class"
    untrained = build_model(base, LinearOptions(), ZeroshotOptions(), len(weights), weights).requires_grad_(False)
    run.fabric.setup_module(untrained)
    return evaluate_records(Labeller(untrained, base, run.fabric), dataset, tested), "zero-shot"


def measure_after(run: Run, labeller: Labeller, dataset: Dataset, split: str) -> dict[str, float]:
    """Metrics of the finished model; the confusion matrix goes into the run folder."""
    records = dataset.records(split)
    scores, labels = score_records(labeller, dataset, records, f"{split} images"), labels_of(dataset, records)
    if run.folder.writes:
        write_confusion(run.folder.path / "confusion.png", confusion_of(scores, labels), dataset.extra["classes"])
    return metrics_of(scores, labels)


def training_batches(
    run: Run, config: Config, examples: LabelledImages, model: Classifier, base: ClipBase
) -> EpochLoader | CachedLoader:
    """Batches of images and labels, or of their cached taps (``--cache``)."""
    if not config.cache:
        return make_loader(examples, config, run.fabric, collate)
    cached = cached_labels(config.cache, config.cache_dtype, examples, model, base, run.fabric)
    return cached.loader(make_loader(cached, config, run.fabric, cached.collate))


def collate(examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Examples -> pixels [B, 3, H, W] and labels [B]."""
    pixels, labels = zip(*examples, strict=True)
    return torch.stack(pixels), torch.tensor(labels)


if __name__ == "__main__":
    cli(main, Config)
