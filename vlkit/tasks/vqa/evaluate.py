"""Visual question answering: build the model, answer, measure. Shared by training, evaluation and serving."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from vlkit.adapters.sherl.t5 import SherlT5Decoder, SherlT5Encoder
from vlkit.adapters.sherl.tokens import SherlOptions
from vlkit.adapters.tuning import TunedEncoder
from vlkit.cli.show import Console, track
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.data.transforms import image_transform
from vlkit.encoders.bases import ClipBase
from vlkit.encoders.text_side import TextSide
from vlkit.engine.distributed import gather_objects, my_share
from vlkit.errors import UserError
from vlkit.metrics.vqa import vqa_metrics
from vlkit.tasks.fusion import Fusion, FusionOptions
from vlkit.tasks.retrieval.data import image_batches, read_image
from vlkit.tasks.vqa.data import answered, by_picture, main_answer
from vlkit.tasks.vqa.heads import AnswerClassifier, AnswerGenerator, ClassifyOptions, GenerateOptions, beam_search

Model = AnswerClassifier | AnswerGenerator
HeadOptions = ClassifyOptions | GenerateOptions
Answers = list[tuple[str, float]]
"""Answers with their probabilities, the best first."""


def build_model(
    base: ClipBase, text: TextSide, adapter: Any, head: HeadOptions, fusion: FusionOptions, answers: int
) -> Model:
    """Put the same adaptation method on both towers, and fusion and answer head behind them.

    Args:
        base: the loaded base; its vision tower becomes part of the model.
        text: what reads the questions; its towers become part of the model.
        adapter: options of one of :data:`vlkit.adapters.ADAPTERS`.
        head: options of one of :data:`vlkit.tasks.vqa.heads.VQA_HEADS`.
        fusion: options of the fusion.
        answers: size of the vocabulary; of no meaning to a head that writes.

    Raises:
        UserError: the method does not fit a tower or the head.
    """
    image = None if head.blind else adapter.build(base.image, "tokens")
    if isinstance(head, ClassifyOptions):
        encoder = adapter.build(text.encoder, "tokens")
        return AnswerClassifier(image, encoder, Fusion(base.image, text.encoder, fusion), answers, head.dropout)
    encoder, decoder = _encoder_decoder(text, adapter)
    return AnswerGenerator(image, encoder, decoder, Fusion(base.image, text.encoder, fusion, head.queries))


def _encoder_decoder(text: TextSide, adapter: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Both stacks of a T5 with the method on them."""
    if text.base is None or text.base.decoder is None:
        raise UserError(f"--head.kind generate: --text_base {text.name} has no decoder; give a T5, or classify")
    if isinstance(adapter, SherlOptions):
        for name in ("late", "taps", "dropout"):
            if getattr(adapter, name) is not None:
                raise UserError(f"--adapter.{name}: SHERL on a decoder is as published (flavour t5); leave it out")
        reduction = 4 if adapter.reduction is None else adapter.reduction
        encoder = SherlT5Encoder(text.base.encoder, reduction=reduction, init=adapter.init)
        return encoder, SherlT5Decoder(text.base.decoder, reduction=reduction, init=adapter.init)
    encoder, decoder = (adapter.build(tower, "tokens") for tower in (text.base.encoder, text.base.decoder))
    if not isinstance(decoder, TunedEncoder):
        mend = "use sherl, lora or full, or --head.kind classify"
        raise UserError(f"--adapter.kind {adapter.kind}: the decoder would not see what the fusion found; {mend}")
    return encoder, decoder


def identity_of(base: ClipBase, text: TextSide, head: HeadOptions) -> dict[str, dict[str, Any]]:
    """Who the towers of a model are: ``image``, ``text`` and, where the head writes, ``decoder``."""
    towers = {name: who for name, who in text.identity.items() if name == "text" or isinstance(head, GenerateOptions)}
    return {"image": {**base.identity["image"], "load": base.name}, **towers}


def adapter_config(
    base: ClipBase,
    text: TextSide,
    adapter: Any,
    head: HeadOptions,
    fusion: FusionOptions,
    vocabulary: list[str],
    metrics: dict[str, float],
) -> dict[str, Any]:
    """What ``adapter_config.json`` says: everything needed to build this model again on the same bases."""
    return {
        "task": "vqa",
        "base": identity_of(base, text, head),
        "adapters": {"image": asdict(adapter), "text": asdict(adapter)},
        "head": {**asdict(head), "fusion": asdict(fusion), "answers": vocabulary},
        "preprocess": base.preprocess.to_dict(),
        "metrics": metrics,
    }


class Answerer:
    """Answers questions about pictures in batches, without gradient.

    Args:
        model: on its device; called in eval mode, left in the mode it had.
        base: the contrastive base it stands on.
        text: what reads the questions.
        head: options of the model's head.
        vocabulary: answers of a classifier, in label order.
        fabric: device and precision.
        batch_size: pictures at once.
    """

    def __init__(
        self,
        model: Model,
        base: ClipBase,
        text: TextSide,
        head: HeadOptions,
        vocabulary: list[str],
        fabric: Fabric,
        batch_size: int = 64,
    ) -> None:
        self.model, self.base, self.text, self.head, self.fabric = model, base, text, head, fabric
        self.vocabulary, self.batch_size = vocabulary, batch_size
        self.transform = image_transform(base.preprocess)

    @torch.no_grad()
    def answer(
        self,
        sources: Sequence[Any],
        questions: Sequence[Sequence[str]],
        open_one: Callable[[Any], Image.Image],
        k: int = 1,
        label: str = "questions",
    ) -> list[list[Answers]]:
        """The k best answers to the questions about each picture.

        Args:
            sources: what ``open_one`` turns into an RGB picture.
            questions: of each picture.
            open_one: source -> picture.
            k: answers a question (fewer where the vocabulary is smaller).
            label: of the progress bar.

        Returns:
            For each picture and each of its questions the answers, best first.
        """
        training = self.model.training
        self.model.eval()
        hidden = not self.fabric.is_global_zero or not sys.stderr.isatty()
        pictures = image_batches(list(sources), lambda source: self.transform(open_one(source)), self.batch_size)
        total = -(-len(sources) // self.batch_size)
        found: list[list[Answers]] = []
        for pixels in track(pictures, label, total, console=Console(stderr=True), transient=True, disable=hidden):
            groups = questions[len(found) : len(found) + len(pixels)]
            found += self._answer_batch(pixels, groups, k)
        self.model.train(training)
        return found

    def _answer_batch(self, pixels: Tensor, groups: Sequence[Sequence[str]], k: int) -> list[list[Answers]]:
        texts = [text for group in groups for text in group]
        if not texts:
            return [[] for _ in groups]
        owner = torch.tensor([place for place, group in enumerate(groups) for _ in group])
        batch = [self.fabric.to_device(part) for part in (pixels, self.text.tokenize(texts), owner)]
        with self.fabric.autocast():
            answers = self._write(batch, k) if isinstance(self.model, AnswerGenerator) else self._choose(batch, k)
        rest = iter(answers)
        return [[next(rest) for _ in group] for group in groups]

    def _choose(self, batch: list[Tensor], k: int) -> list[Answers]:
        logits = self.model(*batch)
        probabilities = logits.softmax(1) if self.head.loss == "softmax" else logits.sigmoid()
        scores, labels = probabilities.topk(min(k, len(self.vocabulary)), dim=1)
        rows = zip(labels.tolist(), scores.tolist(), strict=True)
        return [[(self.vocabulary[i], score) for i, score in zip(*row, strict=True)] for row in rows]

    def _write(self, batch: list[Tensor], k: int) -> list[Answers]:
        text = self.text
        ids, scores = beam_search(
            self.model,
            self.model.memory(*batch),
            text.base.start_id,
            text.base.tokenizer.eos_token_id,
            text.pad_id,
            max(k, self.head.beams),
            self.head.max_tokens,
        )
        found = []
        for rows, logs in zip(ids.tolist(), scores.exp().tolist(), strict=True):
            texts = [text.strip() for text in self.text.base.tokenizer.batch_decode(rows, skip_special_tokens=True)]
            merged: Counter[str] = Counter()  # different tokens can spell one text
            for answer, probability in zip(texts, logs, strict=True):
                merged[answer] += probability
            found.append(merged.most_common(k))
        return found


def predict_records(answerer: Answerer, dataset: Dataset, records: Sequence[Record], label: str) -> dict[Any, str]:
    """Question id -> answer for every record, in their order; processes share the pictures."""
    groups = by_picture(records)
    mine = [groups[i] for i in my_share(answerer.fabric, len(groups))]
    texts = [[record["question"] for record in group] for group in mine]
    found = answerer.answer([group[0] for group in mine], texts, lambda r: read_image(dataset, r), label=label)
    pairs = [
        (record["question_id"], answers[0][0])
        for group, given in zip(mine, found, strict=True)
        for record, answers in zip(group, given, strict=True)
    ]
    everywhere = dict(pair for share in gather_objects(answerer.fabric, pairs) for pair in share)
    return {record["question_id"]: everywhere[record["question_id"]] for record in records}


def evaluate_split(answerer: Answerer, dataset: Dataset, split: str) -> dict[str, float]:
    """Official accuracy of a split, in all and per answer type; see :func:`vlkit.metrics.vqa.vqa_metrics`."""
    records = answered(dataset, split)
    return score(records, predict_records(answerer, dataset, records, f"{split} questions"))


def score(records: Sequence[Record], predictions: dict[Any, str]) -> dict[str, float]:
    """Official accuracy of predictions (question id -> answer) for records with answers."""
    types = {record["question_id"]: record.get("answer_type") for record in records}
    return vqa_metrics(
        predictions,
        {record["question_id"]: record["answers"] for record in records},
        None if None in types.values() else types,
    )


def prior_metrics(train: Sequence[Record], test: Sequence[Record]) -> tuple[str, dict[str, float]]:
    """What can be had without a model: the one most frequent training answer for every question, and its accuracy.

    Also ``question_words_accuracy``: the most frequent training answer among questions with the same first three words.
    """
    words = {}
    for record in train:
        words.setdefault(_first_words(record), Counter())[main_answer(record)] += 1
    most = sum(words.values(), Counter()).most_common(1)[0][0]
    metrics = score(test, {record["question_id"]: most for record in test})
    by_words = {start: counts.most_common(1)[0][0] for start, counts in words.items()}
    guesses = {record["question_id"]: by_words.get(_first_words(record), most) for record in test}
    return most, {**metrics, "question_words_accuracy": score(test, guesses)["accuracy"]}


def _first_words(record: Record) -> tuple[str, ...]:
    return tuple(record["question"].lower().split()[:3])
