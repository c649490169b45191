"""Adapt a CLIP base and a text base to visual question answering.

    python tasks/vqa/train.py                                           # embedded bases, demo data, SHERL
    python tasks/vqa/train.py --head.blind true                         # the same without the pictures
    python tasks/vqa/train.py --data.root DIR --base ViT-B-32:openai --text_base google-t5/t5-base

Reads top to bottom: data, bases, adapters and head, the step with its loss, training, report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
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
from vlkit.encoders.text_side import text_side
from vlkit.engine.checkpoint import save_adapter
from vlkit.engine.fit import CachedRunConfig, fit, make_fabric, make_loader, open_run
from vlkit.engine.hardware import keep_freed_memory
from vlkit.engine.loader import EpochLoader
from vlkit.engine.run_folder import Report
from vlkit.errors import UserError
from vlkit.memory import StepMemory, measure_step
from vlkit.tap_cache.images import cached_pictures
from vlkit.tasks.fusion import FusionOptions
from vlkit.tasks.vqa.data import (
    AnswerTokens,
    Batch,
    PictureQuestions,
    QuestionCollate,
    SoftTargets,
    answer_vocabulary,
    answered,
    read_vocabulary,
)
from vlkit.tasks.vqa.evaluate import (
    Answerer,
    Model,
    adapter_config,
    build_model,
    evaluate_split,
    identity_of,
    prior_metrics,
)
from vlkit.tasks.vqa.heads import VQA_HEADS, answer_bce, answer_softmax, shift_right, token_loss


@dataclass
class Data:
    """What to train on."""

    root: Path | None = None
    """Prepared dataset (data_prep/*); default: the demo dataset, made on first use."""
    size: Literal["small", "medium", "large"] = "large"
    """Of the demo dataset: 400, 2,000 or 10,000 training pictures with four or five questions each."""
    style: Literal["plain", "drawn"] = "plain"
    """Of the demo dataset: the plain drawings that the embedded bases know, or hand-drawn ones that are new to them."""
    train: str = "train"
    """Split to train on."""
    validation: str = "val"
    """Split that chooses the best checkpoint."""
    test: str = "test"
    """Split that is reported; if the dataset has none with answers, the validation split."""
    per_picture: int = 0
    """Most questions of a picture in a step, drawn anew each epoch; 0 = all. The picture is encoded once for them."""
    min_questions: int | None = None
    """The classifier knows the answers that so many questions of the training and validation splits have; default: 9,
    or 1 where every question has one answer only (GQA)."""
    answers: Path | None = None
    """JSON file with the classifier's answers instead (trainval_label2ans.json, trainval_ans2label.json)."""
    augment: Literal["none", "crop"] = "none"
    """Of training pictures; mirroring would make answers about left and right wrong."""


@dataclass
class Config(CachedRunConfig):
    """Adapt a CLIP base and a text base to visual question answering."""

    base: str = "tiny"
    """tiny (embedded), ARCH, ARCH:TAG or ARCH:FILE of open_clip."""
    text_base: str | None = None
    """Reads the questions: clip (the base's own text tower), tiny (embedded T5), a T5 or BERT of the hub, or a folder;
    default: clip, which knows what pictures look like, or tiny where --head.kind generate needs a decoder."""
    image_size: int | None = None
    """Side of the pictures in pixels; default: the base's own."""
    data: Data = field(default_factory=Data)
    adapter: Any = kinds(ADAPTERS, "sherl")
    head: Any = kinds(VQA_HEADS, "classify")
    fusion: FusionOptions = field(default_factory=lambda: FusionOptions(layers=2, dropout=0.0))
    epochs: int = 4
    batch_size: int = 32
    """Pictures a step, all processes together; each comes with its questions."""
    lr: float = 2e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_base is None:
            self.text_base = "clip" if self.head.kind == "classify" else "tiny"
        if self.data.augment != "none":
            self.refuse_cache(f"--data.augment {self.data.augment}", "a picture is another one")
        if self.cache and self.head.kind != "classify":
            raise UserError(
                f"--cache: with --head.kind {self.head.kind} both stacks of T5 are needed in each step; leave --cache "
                "out or use --head.kind classify"
            )


def main(config: Config) -> None:
    fabric = make_fabric(config.device, config.precision, config.seed)
    folder = open_run(config, "vqa", fabric)
    keep_freed_memory()

    dataset = Dataset.open(config.data.root or demo_dataset("vqa", config.data.size, style=config.data.style), "vqa")
    test = reported_split(dataset, config.data)
    base = load_base(config.base, image_size=config.image_size)
    text = text_side(config.text_base, base)
    vocabulary, targets = [], None
    if config.head.kind == "classify":
        vocabulary = vocabulary_of(dataset, config.data)
        targets = SoftTargets(vocabulary)
    elif text.base is not None:
        targets = AnswerTokens(partial(text.base.tokenize, max_length=config.head.max_tokens))
    examples = PictureQuestions(
        dataset, config.data.train, image_transform(base.preprocess, config.data.augment), config.data.per_picture
    )

    answer_model = build_model(base, text, config.adapter, config.head, config.fusion, len(vocabulary))
    model = fabric.setup_module(answer_model)
    if config.cache:
        cached = cached_pictures(
            *(config.cache, config.cache_dtype, examples, answer_model, base, text, fabric),
            preprocess=base.preprocess.to_dict(),
        )
        loader = cached.loader(make_loader(cached, config, fabric, QuestionCollate(cached.read, targets, cached.stack)))
    else:
        loader = make_loader(examples, config, fabric, QuestionCollate(text.tokenize, targets))
    answerer = Answerer(answer_model, base, text, config.head, vocabulary, fabric)

    def loss_of(forward: Callable[..., Tensor], batch: Batch) -> Tensor:
        if config.head.kind == "classify":
            loss = answer_bce if config.head.loss == "bce" else answer_softmax
            return loss(forward(batch.pixels, batch.ids, batch.owner), batch.targets)
        start = shift_right(batch.targets, text.base.start_id)
        return token_loss(forward(batch.pixels, batch.ids, batch.owner, start), batch.targets, text.pad_id)

    if fisher_due(config.adapter, folder):
        # One question at a time.
        single = PictureQuestions(dataset, config.data.train, examples.transform, per_picture=1)
        collate = QuestionCollate(text.tokenize, targets)
        start_from_fisher(answer_model, single, collate, lambda *given: [loss_of(*given)], config, fabric)

    def step(batch: Batch, epoch: float) -> dict[str, Tensor]:
        loss = loss_of(model, batch)
        fabric.backward(loss)
        return {"loss": loss}

    identity = {"base": identity_of(base, text, config.head), "data": {"name": dataset.name, "train": len(examples)}}
    result = fit(
        model,
        loader,
        step,
        lambda: evaluate_split(answerer, dataset, config.data.validation),
        primary="accuracy",
        config=config,
        folder=folder,
        fabric=fabric,
        identity=identity,
    )
    after = evaluate_split(answerer, dataset, test)
    # No base answers questions untrained: what is beaten is the answer that is right most often.
    most, before = prior_metrics(answered(dataset, config.data.train), answered(dataset, test))
    if fabric.is_global_zero:
        settings = adapter_config(base, text, config.adapter, config.head, config.fusion, vocabulary, after)
        save_adapter(folder.path, answer_model, settings)
    memory = memory_of_a_step(answer_model, loader, loss_of, fabric)
    report = Report(
        task="vqa",
        base=identity["base"],
        adapter=asdict(config.adapter),
        split=test,
        before=before,
        after=after,
        **result.costs(memory, fabric.device),
        seed=config.seed,
        more={
            "before_is": f"the most frequent training answer, {most!r}, to every question",
            "head": asdict(config.head),
        },
    )
    if fabric.is_global_zero:
        count = sum(map(len, examples.groups))
        folder.write_report(report, data={"name": dataset.name, "train pictures": len(examples), "questions": count})
        show(report, folder.path)


def reported_split(dataset: Dataset, data: Data) -> str:
    """The test split, or the validation split where that is missing or its answers are hidden."""
    if data.test in dataset.splits and all("answers" in record for record in dataset.records(data.test)):
        return data.test
    return data.validation


def vocabulary_of(dataset: Dataset, data: Data) -> list[str]:
    """The classifier's answers: from a file, or counted."""
    if data.answers is not None:
        return read_vocabulary(data.answers)
    return answer_vocabulary(dataset, [data.train, data.validation], data.min_questions)


def memory_of_a_step(
    model: Model, loader: EpochLoader, loss_of: Callable[[Callable[..., Tensor], Batch], Tensor], fabric: Fabric
) -> StepMemory:
    """What one step of this run takes. The weights move: call it when the adapter is saved."""
    batch = fabric.to_device(next(iter(loader.batches(0, 1))))

    def forward(*inputs: Tensor) -> Tensor:
        with fabric.autocast():
            return model(*inputs)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
    return measure_step(model.train(), lambda: loss_of(forward, batch), optimizer, timed=3)


def show(report: Report, folder: Path) -> None:
    """Print the numbers of the run and where the adapter lies."""
    types = [key for key in report.after if key.startswith("accuracy_")]
    names = [key.removeprefix("accuracy_").replace("_", "/") for key in types]
    table = Table("", "accuracy", *names, title=f"{report.split} split, percent")
    kind = report.adapter["kind"] + (" (blind)" if report.more["head"]["blind"] else "")
    for name, metrics in (("most frequent answer", report.before), (kind, report.after)):
        table.add_row(name, *(f"{metrics[key]:.1f}" for key in ["accuracy", *types]))
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
