"""Adapt a CLIP base and a text base to visual grounding: a text about a picture -> its box.

    python tasks/grounding/train.py                                     # embedded bases, demo data, SHERL
    python tasks/grounding/train.py --data.root DIR --base ViT-B-32:openai --text_base google-t5/t5-base \
        --image_size 384 --data.augment crop

Reads top to bottom: data, bases, adapters and heads, the step with its loss, training, report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.adapters import ADAPTERS
from vlkit.adapters.lst.fisher import fisher_due, start_from_fisher
from vlkit.cli.config import kinds, run
from vlkit.cli.show import Console, Table
from vlkit.data.manifest import Dataset
from vlkit.drawn.prepared import demo_dataset
from vlkit.encoders.load import load_base
from vlkit.encoders.text_side import text_side
from vlkit.engine.checkpoint import save_adapter
from vlkit.engine.fit import CachedRunConfig, fit, make_fabric, make_loader, open_run
from vlkit.engine.hardware import attention_for, keep_freed_memory
from vlkit.engine.loader import EpochLoader
from vlkit.engine.run_folder import Report
from vlkit.errors import UserError
from vlkit.memory import StepMemory, measure_step
from vlkit.tap_cache.images import cached_pictures
from vlkit.tasks.fusion import FusionOptions
from vlkit.tasks.grounding.baseline import blind_boxes, blind_metrics
from vlkit.tasks.grounding.data import Augment, BoxBatch, BoxCollate, BoxedPictures, BoxTransform, Shape
from vlkit.tasks.grounding.evaluate import Locator, adapter_config, build_model, evaluate_split, identities, records_of
from vlkit.tasks.grounding.head import Grounder, GroundingOptions
from vlkit.tasks.grounding.losses import BoxLoss, grounding_loss


@dataclass
class Data:
    """What to train on."""

    root: Path | None = None
    """Prepared dataset (data_prep/*); default: the demo dataset, made on first use."""
    train: str = "train"
    """Split to train on."""
    validation: str = "val"
    """Split that chooses the best checkpoint."""
    test: str = "test"
    """Split that is reported; without one of that name testA and testB together, without those the validation split."""
    texts: int = 8
    """Texts that share a picture in a step, at most; the picture is encoded once for all of them."""
    shape: Shape = "squash"
    """How the whole picture gets into the square input: squash scales each side on its own, letterbox keeps the aspect
    and fills the rest."""
    augment: Augment = "none"
    """Of training pictures: color; crop (color, and a crop around all boxes that keeps 3/4 of each side or more)."""
    flip: bool = False
    """Mirror half of the training pictures and swap left and right in their texts."""

    def __post_init__(self) -> None:
        if self.texts < 1:
            raise UserError(f"--data.texts {self.texts}: must be at least 1")


@dataclass
class Config(CachedRunConfig):
    """Adapt a CLIP base and a text base to visual grounding."""

    base: str = "tiny"
    """Sees the picture: tiny (embedded), ARCH, ARCH:TAG or ARCH:FILE of open_clip."""
    text_base: str = "tiny"
    """Reads the text: tiny (embedded T5), a T5 or BERT of the hub, a folder, or clip (the base's own text tower)."""
    image_size: int | None = None
    """Side of the input in pixels; default: the base's own."""
    data: Data = field(default_factory=Data)
    adapter: Any = kinds(ADAPTERS, "sherl")
    fusion: FusionOptions = field(default_factory=lambda: FusionOptions(layers=2, neck=2))
    head: GroundingOptions = field(default_factory=GroundingOptions)
    loss: BoxLoss = field(default_factory=BoxLoss)
    epochs: int = 12
    batch_size: int = 16
    """Pictures a step, all processes together; each comes with its texts."""
    lr: float = 1.5e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.augment != "none":
            self.refuse_cache(f"--data.augment {self.data.augment}", "a picture is another one")
        if self.data.flip:
            self.refuse_cache("--data.flip true", "a picture is another one")


def main(config: Config) -> None:
    fabric = make_fabric(config.device, config.precision, config.seed)
    folder = open_run(config, "grounding", fabric)
    keep_freed_memory()

    dataset = Dataset.open(config.data.root or demo_dataset("grounding"), "grounding")
    test = reported_split(dataset, config.data)
    base = load_base(config.base, image_size=config.image_size)
    text = text_side(config.text_base, base)
    transform = BoxTransform(base.preprocess, config.data.shape, config.data.augment)
    several = config.head.queries > 1
    examples = BoxedPictures(dataset, config.data.train, transform, config.data.texts, config.data.flip, several)
    before = before_training(dataset, config.data.train, test)

    grounder = build_model(base, text, config.adapter, config.fusion, config.head)
    model = fabric.setup_module(grounder)
    if config.cache:
        cached = cached_pictures(
            *(config.cache, config.cache_dtype, examples, grounder, base, text, fabric),
            preprocess={**base.preprocess.to_dict(), "shape": config.data.shape},
        )
        loader = cached.loader(make_loader(cached, config, fabric, BoxCollate(cached.read, cached.stack)))
    else:
        loader = make_loader(examples, config, fabric, BoxCollate(text.tokenize))
    locator = Locator(grounder, base, text, fabric, config.data.shape)

    def losses_of(forward: Callable[..., Any], batch: BoxBatch) -> list[Tensor]:
        predictions = forward(batch.pixels, batch.ids, batch.owner)
        return [grounding_loss(predictions, batch.boxes, batch.valid, config.loss)["loss"]]

    if fisher_due(config.adapter, folder):
        # One text at a time.
        single = BoxedPictures(dataset, config.data.train, transform, 1, config.data.flip, several)
        start_from_fisher(grounder, single, BoxCollate(text.tokenize), losses_of, config, fabric)

    def step(batch: BoxBatch, epoch: float) -> dict[str, Tensor]:
        predictions = model(batch.pixels, batch.ids, batch.owner)
        count = fabric.all_reduce(batch.valid.sum().float(), reduce_op="mean")
        losses = grounding_loss(predictions, batch.boxes, batch.valid, config.loss, count)
        fabric.backward(losses["loss"])
        return losses

    towers = identities(base, text)
    with attention_for(fabric.device):
        result = fit(
            model,
            loader,
            step,
            lambda: evaluate_split(locator, dataset, config.data.validation),
            primary="acc@0.5",
            config=config,
            folder=folder,
            fabric=fabric,
            identity={"base": towers, "data": {"name": dataset.name, "train": examples.count}},
        )
    after = evaluate_split(locator, dataset, test)
    if fabric.is_global_zero:
        saved = adapter_config(
            base, text, config.adapter, config.fusion, config.head, config.data.shape, config.image_size, after
        )
        save_adapter(folder.path, grounder, saved)
    memory = memory_of_a_step(grounder, loader, config.loss, fabric)
    report = Report(
        task="grounding",
        base=towers,
        adapter=asdict(config.adapter),
        split=test,
        before=before,
        after=after,
        **result.costs(memory, fabric.device),
        seed=config.seed,
        more={"before_is": "one box for all texts, chosen on the training split"},
    )
    if fabric.is_global_zero:
        counts = {"train texts": examples.count, "train pictures": len(examples)}
        folder.write_report(report, data={"name": dataset.name, **counts})
        show(report, folder.path)


def reported_split(dataset: Dataset, data: Data) -> str:
    """The split to report on, checked before hours of training; see :class:`Data`."""
    for split in (data.train, data.validation):
        dataset.split_file(split)
    if data.test != "test":
        records_of(dataset, data.test)
        return data.test
    known = set(dataset.splits)
    return "test" if known & {"test", "testA", "testB"} else data.validation


def before_training(dataset: Dataset, train: str, test: str) -> dict[str, float]:
    """What the best blind box of the training split scores on the test split."""
    records = records_of(dataset, train)
    return blind_metrics(blind_boxes(dataset, records), dataset, records_of(dataset, test))


def memory_of_a_step(model: Grounder, loader: EpochLoader, loss: BoxLoss, fabric: Fabric) -> StepMemory:
    """What one step of this run takes. The weights move: call it when the adapter is saved."""
    batch = fabric.to_device(next(iter(loader.batches(0, 1))))

    def forward() -> Tensor:
        with fabric.autocast():
            predictions = model(batch.pixels, batch.ids, batch.owner)
        return grounding_loss(predictions, batch.boxes, batch.valid, loss)["loss"]

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    return measure_step(model.train(), forward, optimizer, timed=3)


def show(report: Report, folder: Path) -> None:
    """Print the numbers of the run and where the adapter lies."""
    table = Table("", "best blind box", report.adapter["kind"], title=f"{report.split} split, percent")
    for key, value in report.after.items():
        before = report.before.get(key)
        table.add_row(key, "" if before is None else f"{before:.1f}", f"{value:.1f}")
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
