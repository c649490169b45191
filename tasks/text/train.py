"""Adapt a T5 (or another text encoder) to label texts and pairs of texts.

    python tasks/text/train.py                 # embedded T5, inference over drawn scenes, SHERL
    python tasks/text/train.py --data.demo paraphrase --adapter.kind lst
    python tasks/text/train.py --head.kind classify --adapter.kind linear
    python tasks/text/train.py --data.root data/rte --text_base google-t5/t5-base

Reads top to bottom: data, base, adapter and head, batches, loss, training, report.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, cast

from torch import Tensor

from vlkit.adapters import ADAPTERS
from vlkit.cli.config import kinds
from vlkit.cli.config import run as cli
from vlkit.data.text_task import task_of, text_records
from vlkit.encoders.load import load_text_base
from vlkit.encoders.stored_weights import with_format
from vlkit.encoders.tokenizer import Shorter, warn_of_cut_texts
from vlkit.engine.config import RunConfig
from vlkit.engine.fit import fit
from vlkit.engine.loader import make_loader
from vlkit.engine.optim import ScheduleKind
from vlkit.engine.prepare import prepare
from vlkit.engine.run import Forward, Run, step_memory
from vlkit.tasks.generation import shift_right, token_loss
from vlkit.tasks.splits import data_identity, reported_split
from vlkit.tasks.text.data import Batch, TextCollate, TextData, TextExamples, text_dataset
from vlkit.tasks.text.evaluate import Labeller, evaluate_split, prior_metrics
from vlkit.tasks.text.losses import label_loss
from vlkit.tasks.text.model import TEXT_HEADS, adapter_config, build_model, identity_of
from vlkit.tasks.text.task import TASK


@dataclass
class Config(RunConfig):
    """Adapt a T5 (or another text encoder) to label texts and pairs of texts."""

    text_base: str = "tiny"
    """Text base: tiny (embedded T5), a T5, BERT or similar model of the hub, or a folder."""
    data: TextData = field(default_factory=TextData)
    adapter: Any = kinds(ADAPTERS, "sherl")
    head: Any = kinds(TEXT_HEADS, "write")
    epochs: int = 10
    batch_size: int = 100
    lr: float = 3e-3
    weight_decay: float = 0.0
    schedule: ScheduleKind = "linear"


def main(config: Config) -> None:
    run = Run.open(config, TASK.name)
    dataset = text_dataset(config.data.root, config.data.demo, config.data.size, config.data.style)
    task, test = task_of(dataset), reported_split(dataset, config.data)
    examples = TextExamples(dataset, config.data.train)
    for split in (config.data.validation, test):
        text_records(dataset, split)  # a wrong record is named before training
    base = load_text_base(with_format(config.text_base, config.base_weights))
    writes = config.head.kind == "write"

    labelling = build_model(base, task, config.adapter, config.head)
    model = run.fabric.setup_module(labelling)
    collate = TextCollate(task, base, config.head.source_tokens, writes)
    texts = [collate.read(record) for record in examples.records]
    warn_of_cut_texts(Shorter(base.lengths, config.head.source_tokens), texts, "training texts")
    loader = make_loader(examples, config, run.fabric, collate)

    def loss_of(forward: Forward, batch: Batch, epoch: float) -> Tensor:
        if not writes:
            return label_loss(forward(batch.ids), batch.targets)
        start = shift_right(batch.targets, cast(int, base.start_id))
        return token_loss(forward(batch.ids, start), batch.targets, base.tokenizer.pad_token_id)

    def evaluate(split: str = config.data.validation) -> dict[str, float]:
        return evaluate_split(Labeller(labelling, base, task, config.head, run.fabric), dataset, split)

    most, before = prior_metrics(task, examples.records, text_records(dataset, test))
    prepare(run, config.adapter, labelling, partial(TextExamples, dataset, config.data.train), collate, loss_of)
    identity = {
        "base": identity_of(base, config.head),
        **data_identity(dataset, config.data.train, config.data.validation, text=task.to_dict()),
    }
    result = fit(run, model, loader, loss_of, evaluate, primary="score", identity=identity)
    run.finish(
        result,
        labelling,
        adapter_config(base, task, config.adapter, config.head, evaluate(test)),
        split=test,
        before=before,
        memory=step_memory(run, labelling, loader, loss_of),
        data={"name": dataset.name, "task": task.word, "train texts": len(examples)},
        columns={name: name for name in ("score", *task.metrics)},
        first_row="most frequent label" if not task.regression else "mean",
        more={"before_is": f"{most} for every text", "head": asdict(config.head), "text_task": task.to_dict()},
    )


if __name__ == "__main__":
    cli(main, Config)
