"""Adapt a CLIP base and a text base to visual question answering.

    python tasks/vqa/train.py                                           # embedded bases, demo data, SHERL
    python tasks/vqa/train.py --head.blind true                         # the same without the images
    python tasks/vqa/train.py --data.root DIR --base ViT-B-32:openai --text_base google-t5/t5-base

Reads top to bottom: data, bases, adapters and head, batches, loss, training, report.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vlkit.adapters import ADAPTERS
from vlkit.cli.config import kinds
from vlkit.cli.config import run as cli
from vlkit.data.manifest import Dataset
from vlkit.data.transforms import image_transform
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.load import load_base
from vlkit.encoders.stored_weights import with_format
from vlkit.encoders.text_side import TextSide, text_side
from vlkit.encoders.tokenizer import Shorter, warn_of_cut_texts
from vlkit.engine.config import CachedRunConfig
from vlkit.engine.fit import fit
from vlkit.engine.loader import EpochLoader, make_loader
from vlkit.engine.prepare import prepare
from vlkit.engine.run import Forward, Run, step_memory
from vlkit.errors import UserError
from vlkit.tap_cache.images import cached_images
from vlkit.tap_cache.maker import CachedLoader
from vlkit.tasks.fusion import FusionOptions
from vlkit.tasks.generation import shift_right
from vlkit.tasks.splits import data_identity
from vlkit.tasks.vqa.data import (
    AnswerTokens,
    Batch,
    ImageQuestions,
    QuestionCollate,
    SoftTargets,
    answer_vocabulary,
    answered,
    answered_split,
    form_of,
    images_per_question,
    read_vocabulary,
    two_answers,
    warn_of_unlabelled,
)
from vlkit.tasks.vqa.evaluate import Answerer, columns_of, evaluate_split, prior_metrics
from vlkit.tasks.vqa.heads import VQA_HEADS, prompt_of
from vlkit.tasks.vqa.losses import answer_bce, answer_softmax, written_loss
from vlkit.tasks.vqa.model import HeadOptions, Model, adapter_config, build_model, identity_of, with_defaults_of
from vlkit.tasks.vqa.task import TASK


@dataclass
class Data:
    """Dataset to train on."""

    root: Path | None = None
    """Prepared dataset (data_prep/*); default: the demo dataset, made on first use."""
    size: Literal["small", "medium", "large"] = "large"
    """Size of the demo dataset: 400, 2,000 or 10,000 training images with four or five questions each."""
    style: Literal["drawn", "plain"] = "drawn"
    """Style of the demo dataset: the demo world's drawings, or plain ones with only words the embedded base knows."""
    train: str = "train"
    """Split to train on."""
    validation: str = "val"
    """Split that chooses the best checkpoint."""
    test: str = "test"
    """Split to report on; if it is missing or has no answers, the validation split."""
    per_picture: int = 0
    """Most questions per image in a step, drawn anew in each epoch; 0 = all. The image is encoded once for them."""
    min_questions: int | None = None
    """Fewest questions in the training and validation splits for an answer to enter the classifier's vocabulary;
    default: 9, or 1 if every question has only one answer (GQA)."""
    answers: Path | None = None
    """JSON file with the classifier's vocabulary instead (trainval_label2ans.json, trainval_ans2label.json)."""
    augment: Literal["none", "crop"] = "none"
    """Augmentation of training images; mirroring would make answers about left and right wrong."""
    draft: bool = False
    """Decode JPEGs that are much larger than the base's input at a half, a quarter or an eighth of their size, never
    below twice the input: faster, pixels differ slightly."""


@dataclass
class Config(CachedRunConfig):
    """Adapt a CLIP base and a text base to visual question answering."""

    base: str = "tiny"
    """Base: tiny (embedded), ARCH, ARCH:TAG or ARCH:FILE of open_clip, hf:NAME_OR_FOLDER (CLIP or SigLIP of
    transformers), photos, or a pair timm:NAME+hf:NAME."""
    text_base: str | None = None
    """Text base for questions: clip (the base's text tower), tiny (embedded T5), a T5, BERT or similar model of the
    hub, or a folder; default: clip, or tiny if --head.kind generate needs a decoder."""
    image_size: int | None = None
    """Side of the input in pixels; default: that of the base."""
    data: Data = field(default_factory=Data)
    adapter: Any = kinds(ADAPTERS, "sherl")
    head: Any = kinds(VQA_HEADS, "classify")
    fusion: FusionOptions = field(default_factory=lambda: FusionOptions(layers=2, dropout=0.0, match=True))
    cache: bool | Path | None = None
    epochs: int = 5
    batch_size: int = 32
    """Images per step with their questions, all processes together."""
    lr: float = 2e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_base is None:
            self.text_base = "clip" if self.head.kind == "classify" else "tiny"
        if self.data.augment != "none":
            self.refuse_cache(f"--data.augment {self.data.augment}", "each image is different")
        if self.cache and self.head.kind != "classify":
            raise UserError(
                f"--cache: with --head.kind {self.head.kind} every step needs T5's encoder and decoder; drop --cache "
                "or use --head.kind classify"
            )
        self.choose_cache(self.data.root is None and self.head.kind == "classify" and self.adapter.has_early_route)


def main(config: Config) -> None:
    run = Run.open(config, TASK.name)
    dataset = TASK.dataset(config.data.root, size=config.data.size, style=config.data.style)
    test = answered_split(dataset, config.data)
    base = load_base(with_format(config.base, config.base_weights), image_size=config.image_size)
    if config.data.draft:
        dataset = replace(dataset, min_side=base.preprocess.draft_side)
    text = text_side(with_format(config.text_base, config.base_weights), base, prompt=prompt_of(config.head))
    vocabulary = vocabulary_of(dataset, config, text)
    transform = image_transform(base.preprocess, config.data.augment)
    examples = ImageQuestions(dataset, config.data.train, transform, config.data.per_picture)
    warn_of_cut_texts(text, examples.texts, "training questions")

    adapter = with_defaults_of(config.head, config.adapter)
    images = images_per_question(dataset)
    answer_model = build_model(base, text, adapter, config.head, config.fusion, len(vocabulary), images)
    model = run.fabric.setup_module(answer_model)
    collate = QuestionCollate(text.tokenize, targets_of(dataset, config.head, text, vocabulary))
    warn_of_answers(dataset, config, test, text, vocabulary)
    loader = training_batches(run, config, examples, collate, answer_model, base, text)

    def loss_of(forward: Forward, batch: Batch, epoch: float) -> Tensor:
        if config.head.kind == "generate":
            start = shift_right(batch.targets, text.base.start_id)
            logits = forward(batch.pixels, batch.ids, batch.owner, start)
            return written_loss(logits, batch.targets, batch.scores, text.pad_id)
        loss = answer_bce if config.head.loss == "bce" else answer_softmax
        return loss(forward(batch.pixels, batch.ids, batch.owner), batch.targets)

    def evaluate(split: str = config.data.validation) -> dict[str, float]:
        return evaluate_split(Answerer(answer_model, base, text, config.head, vocabulary, run.fabric), dataset, split)

    single = partial(ImageQuestions, dataset, config.data.train, transform, per_picture=1)
    prepare(run, adapter, answer_model, single, collate, loss_of)
    towers = identity_of(base, text, config.head)
    identity = {"base": towers, **data_identity(dataset, config.data.train, config.data.validation, answers=vocabulary)}
    result = fit(run, model, loader, loss_of, evaluate, primary="accuracy", identity=identity)
    after = evaluate(test)
    # No base answers questions untrained, so the baseline is the most frequent answer.
    most, before = prior_metrics(answered(dataset, config.data.train), answered(dataset, test), form_of(dataset))
    run.finish(
        result,
        answer_model,
        adapter_config(base, text, adapter, config.head, config.fusion, vocabulary, after, images),
        split=test,
        before=before,
        memory=step_memory(run, answer_model, loader, loss_of),
        data={"name": dataset.name, "train images": examples.image_count, "questions": sum(map(len, examples.groups))},
        columns=columns_of(after),
        first_row="most frequent answer",
        note="blind" if config.head.blind else "",
        more={
            "before_is": f"the most frequent training answer, {most!r}, to every question",
            "head": asdict(config.head),
        },
    )


def vocabulary_of(dataset: Dataset, config: Config, text: TextSide) -> list[str]:
    """The classifier's answers, from a file or counted. For a generating head the two answers of a dataset that has no
    others, else empty.
    """
    data = config.data
    if config.head.kind != "classify":
        # build_model refuses a text base without a decoder.
        return two_answers(dataset, [data.train, data.validation], text.base.tokenize) if text.base else []
    if data.answers is not None:
        return read_vocabulary(data.answers)
    return answer_vocabulary(dataset, [data.train, data.validation], data.min_questions)


def targets_of(
    dataset: Dataset, head: HeadOptions, text: TextSide, vocabulary: list[str]
) -> SoftTargets | AnswerTokens | None:
    """Converts the answers of a batch into targets."""
    if head.kind == "classify":
        return SoftTargets(vocabulary, form_of(dataset))
    # build_model has refused a text base without a decoder.
    return AnswerTokens(partial(text.base.tokenize, max_length=head.max_tokens), form_of(dataset))


def warn_of_answers(dataset: Dataset, config: Config, test: str, text: TextSide, vocabulary: list[str]) -> None:
    """Log how many questions have no answer in the vocabulary, or how many answers are too long for the decoder."""
    if config.head.kind == "classify":
        warn_of_unlabelled(dataset, [config.data.train, config.data.validation, test], vocabulary)
        return
    written = [form_of(dataset)(answer) for r in answered(dataset, config.data.train) for answer in r["answers"]]
    warn_of_cut_texts(Shorter(text.base.lengths, config.head.max_tokens), written, "training answers")


def training_batches(
    run: Run,
    config: Config,
    examples: ImageQuestions,
    collate: QuestionCollate,
    model: Model,
    base: ClipBase,
    text: TextSide,
) -> EpochLoader | CachedLoader:
    """Batches of images and questions, or of their cached taps (``--cache``)."""
    if not config.cache:
        return make_loader(examples, config, run.fabric, collate)
    given = (config.cache, config.cache_dtype, examples, model, base, text, run.fabric)
    cached = cached_images(*given, preprocess=base.preprocess.to_dict())
    collate = QuestionCollate(cached.read, collate.targets, cached.stack_several)
    return cached.loader(make_loader(cached, config, run.fabric, collate))


if __name__ == "__main__":
    cli(main, Config)
