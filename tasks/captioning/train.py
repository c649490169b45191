"""Adapt a CLIP base and a T5 to caption images.

    python tasks/captioning/train.py                                    # embedded bases, demo data, SHERL
    python tasks/captioning/train.py --adapter.kind lst
    python tasks/captioning/train.py --data.root DIR --base ViT-B-32:openai --text_base google-t5/t5-base

Reads top to bottom: data, bases, adapters and head, batches, loss, training, report.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, cast

from torch import Tensor

from vlkit.adapters import ADAPTERS
from vlkit.cli.config import kinds
from vlkit.cli.config import run as cli
from vlkit.data.transforms import image_transform
from vlkit.encoders.load import load_base
from vlkit.encoders.stored_weights import with_format
from vlkit.encoders.text_side import text_side
from vlkit.encoders.tokenizer import Shorter, warn_of_cut_texts
from vlkit.engine.config import RunConfig
from vlkit.engine.fit import fit
from vlkit.engine.loader import make_loader
from vlkit.engine.prepare import prepare
from vlkit.engine.run import Forward, Run, step_memory
from vlkit.tasks.captioning.baseline import nearest_metrics
from vlkit.tasks.captioning.data import Batch, CaptionCollate, CaptionData, CaptionedImages
from vlkit.tasks.captioning.evaluate import Captioner, evaluate_split, prompt_of
from vlkit.tasks.captioning.losses import caption_loss
from vlkit.tasks.captioning.model import CaptionOptions, adapter_config, build_model, identity_of, writing_base
from vlkit.tasks.captioning.task import TASK
from vlkit.tasks.generation import shift_right
from vlkit.tasks.splits import data_identity, reported_split


@dataclass
class Config(RunConfig):
    """Adapt a CLIP base and a T5 to caption images."""

    base: str = "tiny"
    """Base: tiny (embedded), ARCH, ARCH:TAG or ARCH:FILE of open_clip, hf:NAME_OR_FOLDER (CLIP or SigLIP of
    transformers), photos, or a pair timm:NAME+hf:NAME."""
    text_base: str = "tiny"
    """Text base with a decoder: tiny (embedded T5), a T5 of the hub, or a folder."""
    image_size: int | None = None
    """Side of the input in pixels; default: that of the base."""
    data: CaptionData = field(default_factory=CaptionData)
    adapter: Any = kinds(ADAPTERS, "sherl")
    head: CaptionOptions = field(default_factory=CaptionOptions)
    before: bool = True
    """Measure captions of the nearest training images on the test split before training, too; false starts sooner."""
    epochs: int = 4
    batch_size: int = 32
    """Images per step with their captions, all processes together."""
    lr: float = 3e-3


def main(config: Config) -> None:
    run = Run.open(config, TASK.name)
    dataset = TASK.dataset(config.data.root, config.data.columns, size=config.data.size, style=config.data.style)
    test = reported_split(dataset, config.data)
    base = load_base(with_format(config.base, config.base_weights), image_size=config.image_size)
    text = text_side(with_format(config.text_base, config.base_weights), base)
    transform = image_transform(base.preprocess, config.data.augment)
    images = CaptionedImages(dataset, config.data.train, transform, config.data.per_image)

    writer = build_model(base, text, config.adapter, config.head)
    model = run.fabric.setup_module(writer)
    t5 = writing_base(text)
    warn_of_cut_texts(Shorter(t5.lengths, config.head.max_tokens), images.texts, "training captions")
    tokenize = partial(t5.tokenize, max_length=config.head.max_tokens)
    collate = CaptionCollate(prompt_of(text, config.head), tokenize)
    loader = make_loader(images, config, run.fabric, collate)

    def loss_of(forward: Forward, batch: Batch, epoch: float) -> Tensor:
        start = shift_right(batch.targets, cast(int, t5.start_id))
        logits = forward(batch.pixels, batch.prompts, batch.owner, start)
        return caption_loss(logits, batch.targets, text.pad_id)

    def evaluate(split: str = config.data.validation) -> dict[str, float]:
        return evaluate_split(Captioner(writer, base, text, config.head, run.fabric), dataset, split)

    before_is, before = "", {}
    if config.before:
        before_is, before = nearest_metrics(base, dataset, config.data.train, test, run.fabric.device)
    single = partial(CaptionedImages, dataset, config.data.train, transform, per_image=1)
    prepare(run, config.adapter, writer, single, collate, loss_of)
    identity = {"base": identity_of(base, text), **data_identity(dataset, config.data.train, config.data.validation)}
    result = fit(run, model, loader, loss_of, evaluate, primary="cider", identity=identity)
    run.finish(
        result,
        writer,
        adapter_config(base, text, config.adapter, config.head, evaluate(test)),
        split=test,
        before=before,
        memory=step_memory(run, writer, loader, loss_of),
        data={"name": dataset.name, "train images": len(images), "captions": len(images.texts)},
        columns=TASK.scores,
        first_row=before_is,
        note="blind" if config.head.blind else "",
        more={"before_is": f"consensus caption of the {before_is}", "head": asdict(config.head)},
    )


if __name__ == "__main__":
    cli(main, Config)
