"""Adapt a CLIP base to image-text retrieval.

    python tasks/retrieval/train.py                                     # embedded base, demo data, SHERL
    python tasks/retrieval/train.py --data.root DIR --base ViT-B-32:openai --adapter.kind lora

Reads top to bottom: data, base, adapter and head, the step with its loss, training, report.
"""

from __future__ import annotations

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
from vlkit.data.transforms import image_transform
from vlkit.drawn.prepared import demo_dataset
from vlkit.encoders.load import load_base
from vlkit.engine.checkpoint import save_adapter
from vlkit.engine.fit import CachedRunConfig, fit, make_fabric, make_loader, open_run
from vlkit.engine.hardware import keep_freed_memory
from vlkit.engine.loader import EpochLoader
from vlkit.engine.run_folder import Report
from vlkit.memory import StepMemory, measure_step
from vlkit.tap_cache.pairs import cached_pairs
from vlkit.tasks.contrastive import Pairs, backward_in_chunks, example_losses, gather_pairs, info_nce, siglip, triplet
from vlkit.tasks.retrieval.data import ImageTextPairs, PairCollate
from vlkit.tasks.retrieval.evaluate import Embedder, adapter_config, build_model, evaluate_split, zero_shot
from vlkit.tasks.two_tower import HeadOptions, TwoTower


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
    """Split that is reported; if the dataset has none, the validation split."""
    every_caption: bool = False
    """Each caption is an example of its own (an epoch is all pairs); else each picture is one, with another caption
    each epoch."""
    augment: Literal["none", "crop", "flip"] = "none"
    """Of training pictures; flip mirrors half of them and does not suit captions that say left or right."""


@dataclass
class Loss:
    """What is minimised."""

    kind: Literal["infonce", "siglip", "triplet"] = "infonce"
    """Softmax contrastive (CLIP), sigmoid (SigLIP), or hinge with hardest negatives (VSE-infinity)."""
    margin: float = 0.2
    """Of the triplet loss; its first epoch sums over all negatives, the second is ramped up."""
    chunk: int = 0
    """Pairs encoded at once; the gradient stays that of the whole batch (cached contrastive loss); 0 = all."""


@dataclass
class Config(CachedRunConfig):
    """Adapt a CLIP base to image-text retrieval."""

    base: str = "tiny"
    """tiny (embedded), ARCH, ARCH:TAG or ARCH:FILE of open_clip."""
    data: Data = field(default_factory=Data)
    adapter: Any = kinds(ADAPTERS, "sherl")
    head: HeadOptions = field(default_factory=HeadOptions)
    loss: Loss = field(default_factory=Loss)
    bucket: bool = False
    """Batches of captions of similar length, so that less of a batch is padding: worth it where the text tower takes
    much of the time. The negatives of a caption are then about as long as it is."""
    epochs: int = 16
    batch_size: int = 128
    lr: float = 3e-3
    evaluate_every: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.augment != "none":
            self.refuse_cache(f"--data.augment {self.data.augment}", "a picture is another one")


def main(config: Config) -> None:
    fabric = make_fabric(config.device, config.precision, config.seed)
    folder = open_run(config, "retrieval", fabric)
    keep_freed_memory()

    dataset = Dataset.open(config.data.root or demo_dataset("retrieval"), "retrieval")
    test = config.data.test if config.data.test in dataset.splits else config.data.validation
    base = load_base(config.base)
    pairs = ImageTextPairs(
        dataset, config.data.train, image_transform(base.preprocess, config.data.augment), config.data.every_caption
    )
    lengths = pairs.lengths(lambda texts: base.text.real(base.tokenize(texts)).sum(1)) if config.bucket else None

    # Measured before the adapter is built: full fine-tuning and LoRA change the base's own modules.
    untrained = zero_shot(base)
    fabric.setup_module(untrained)
    before = evaluate_split(Embedder(untrained, base, fabric), dataset, test)

    two_tower = build_model(base, config.adapter, config.head)
    model = fabric.setup_module(two_tower)
    embedder = Embedder(two_tower, base, fabric)
    collate = PairCollate(base.tokenize, base.text.trim)
    if config.cache:
        cached = cached_pairs(config.cache, config.cache_dtype, pairs, two_tower, base, fabric)
        loader = cached.loader(make_loader(cached, config, fabric, cached.collate, lengths))
    else:
        loader = make_loader(pairs, config, fabric, collate, lengths)

    def loss_of(pairs: Pairs, scale: Tensor, bias: Tensor, epoch: float) -> Tensor:
        if config.loss.kind == "siglip":
            return siglip(pairs, scale, bias)
        if config.loss.kind == "triplet":
            # As published for VSE-infinity: all negatives first, then the hardest with a ramp over one epoch.
            return triplet(pairs, config.loss.margin, hardest=epoch >= 1) * (epoch - 1 if 1 <= epoch < 2 else 1)
        return info_nce(pairs, scale)

    def losses_of(forward: Callable[..., Any], batch: tuple[Tensor, Tensor, Tensor]) -> Iterator[Tensor]:
        """Of each pair of a batch, with the others as negatives."""
        pixels, ids, groups = batch
        return example_losses(
            list(zip(pixels.split(1), ids.split(1), strict=True)),
            lambda pair: forward(*pair),
            lambda images, texts, *rest: loss_of(gather_pairs(images, texts, groups), *rest, 0.0),
        )

    if fisher_due(config.adapter, folder):
        start_from_fisher(two_tower, pairs, collate, losses_of, config, fabric, config.batch_size)

    def step(batch: tuple[Tensor, Tensor, Tensor], epoch: float) -> dict[str, Tensor]:
        pixels, ids, groups = batch
        if config.loss.chunk:
            chunks = list(zip(pixels.split(config.loss.chunk), ids.split(config.loss.chunk), strict=True))
            loss = backward_in_chunks(
                chunks,
                lambda chunk: model(*chunk),
                lambda images, texts, *rest: loss_of(gather_pairs(images, texts, groups, fabric), *rest, epoch),
                fabric,
            )
        else:
            images, texts, scale, bias = model(pixels, ids)
            loss = loss_of(gather_pairs(images, texts, groups, fabric), scale, bias, epoch)
            fabric.backward(loss)
        return {"loss": loss}

    identity = {"base": base.identity, "data": {"name": dataset.name, "train": len(pairs)}}
    result = fit(
        model,
        loader,
        step,
        lambda: evaluate_split(embedder, dataset, config.data.validation),
        primary="rsum",
        config=config,
        folder=folder,
        fabric=fabric,
        identity=identity,
    )
    after = evaluate_split(embedder, dataset, test)
    if fabric.is_global_zero:
        save_adapter(folder.path, two_tower, adapter_config(base, config.adapter, config.head, after))
    memory = memory_of_a_step(two_tower, loader, loss_of, fabric)
    report = Report(
        task="retrieval",
        base=base.identity,
        adapter=asdict(config.adapter),
        split=test,
        before=before,
        after=after,
        **result.costs(memory, fabric.device),
        seed=config.seed,
    )
    if fabric.is_global_zero:
        folder.write_report(report, data={"name": dataset.name, "train pairs": len(pairs)})
        show(report, folder.path)


def memory_of_a_step(
    model: TwoTower, loader: EpochLoader, loss_of: Callable[..., Tensor], fabric: Fabric
) -> StepMemory:
    """What one step of this run takes. The weights move: call it when the adapter is saved."""
    pixels, ids, groups = fabric.to_device(next(iter(loader.batches(0, 1))))

    def forward() -> Tensor:
        with fabric.autocast():
            images, texts, scale, bias = model(pixels, ids)
        return loss_of(gather_pairs(images, texts, groups), scale, bias, 0.0)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    return measure_step(model.train(), forward, optimizer, timed=3)


def show(report: Report, folder: Path) -> None:
    """Print the numbers of the run and where the adapter lies."""
    table = Table(
        "", "i2t R@1", "R@5", "R@10", "t2i R@1", "R@5", "R@10", "rsum", title=f"{report.split} split, percent"
    )
    for name, metrics in (("zero-shot", report.before), (report.adapter["kind"], report.after)):
        keys = [f"{direction}_r{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10)]
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
