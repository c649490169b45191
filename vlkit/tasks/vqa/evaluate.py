"""Visual question answering: build the model, answer, measure. Shared by training, evaluation and serving."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor

from vlkit.cli.show import Console, track
from vlkit.data.images import image_batches, read_image
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record, each_medium
from vlkit.data.transforms import image_transform
from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.encoders.text_side import TextSide
from vlkit.encoders.tokenizer import warn_of_cut_texts
from vlkit.engine.distributed import gather_objects, my_share
from vlkit.errors import UserError
from vlkit.metrics.gqa import binary_and_open
from vlkit.metrics.nlvr2 import nlvr2_metrics
from vlkit.metrics.vqa import Form, accuracy_by_group, answer_scores, vqa_metrics
from vlkit.metrics.vqa_text import answer_form
from vlkit.tasks.generation import ImageWriter, beam_search
from vlkit.tasks.vqa.data import answered, by_image, form_of, main_answer
from vlkit.tasks.vqa.heads import AnswerClassifier, AnswerGenerator, ClassifyOptions, GenerateOptions
from vlkit.tasks.vqa.model import HeadOptions, Model

Answers = list[tuple[str, float]]
"""Answers with their probabilities, best first."""


class Answerer:
    """Answers questions about images in batches, without gradient.

    Args:
        model: the model on its device; run in eval mode, its mode is restored. It reads I images per question.
        base: its contrastive base.
        text: the side that reads questions.
        head: options of the model's head.
        vocabulary: answers of the classifier, in label order; of a decoder, the answers to choose from (empty: any
            text).
        fabric: device and precision.
        batch_size: images (or pairs) per batch.
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
        sources: Sequence[Sequence[Any]],
        questions: Sequence[Sequence[str]],
        open_one: Callable[[Any], Image.Image],
        k: int = 1,
        label: str = "questions",
    ) -> list[list[Answers]]:
        """The k best answers to the questions about each image or pair of images.

        Args:
            sources: the I images of each example, in any form that ``open_one`` reads.
            questions: questions about each of them.
            open_one: source -> RGB image.
            k: answers per question (fewer if the vocabulary is smaller).
            label: label of the progress bar.

        Returns:
            For each example and each of its questions the answers, best first.
        """
        training = self.model.training
        self.model.eval()
        hidden = not self.fabric.is_global_zero or not sys.stderr.isatty()
        each = self.model.images
        flat = [source for pair in sources for source in pair]
        images = image_batches(flat, lambda source: self.transform(open_one(source)), self.batch_size * each)
        total = -(-len(sources) // self.batch_size)
        found: list[list[Answers]] = []
        for pixels in track(images, label, total, console=Console(stderr=True), transient=True, disable=hidden):
            groups = questions[len(found) : len(found) + len(pixels) // each]
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
            if isinstance(self.model, AnswerClassifier):
                answers = self._choose(batch, k)
            else:
                answers = self._compare(batch, k) if self.vocabulary else self._write(batch, k)
        rest = iter(answers)
        return [[next(rest) for _ in group] for group in groups]

    def _choose(self, batch: list[Tensor], k: int) -> list[Answers]:
        logits = self.model(*batch)
        probabilities = logits.softmax(1) if cast(ClassifyOptions, self.head).loss == "softmax" else logits.sigmoid()
        return self._best(probabilities, k)

    def _compare(self, batch: list[Tensor], k: int) -> list[Answers]:
        """The decoder's first logits of the answers' first tokens, as VL-T5 judges the sentences of NLVR2."""
        base, model = cast(TextBase, self.text.base), cast("AnswerGenerator | ImageWriter", self.model)
        memory = model.memory(*batch)
        start = torch.full((len(memory.side), 1), cast(int, base.start_id), device=memory.side.device)
        first = base.tokenize(self.vocabulary)[:, 0].to(start.device)
        return self._best(model.decode(memory, start)[:, -1, first].softmax(1), k)

    def _best(self, probabilities: Tensor, k: int) -> list[Answers]:
        scores, labels = probabilities.topk(min(k, len(self.vocabulary)), dim=1)
        rows = zip(labels.tolist(), scores.tolist(), strict=True)
        return [[(self.vocabulary[i], score) for i, score in zip(*row, strict=True)] for row in rows]

    def _write(self, batch: list[Tensor], k: int) -> list[Answers]:
        text, head = self.text, cast(GenerateOptions, self.head)
        base, model = cast(TextBase, text.base), cast("AnswerGenerator | ImageWriter", self.model)
        ids, scores = beam_search(
            model,
            model.memory(*batch),
            cast(int, base.start_id),
            base.tokenizer.eos_token_id,
            text.pad_id,
            max(k, head.beams),
            head.max_tokens,
        )
        found = []
        for rows, logs in zip(ids.tolist(), scores.exp().tolist(), strict=True):
            texts = [text.strip() for text in base.tokenizer.batch_decode(rows, skip_special_tokens=True)]
            merged: Counter[str] = Counter()  # different tokens can spell the same text
            for answer, probability in zip(texts, logs, strict=True):
                merged[answer] += probability
            found.append(merged.most_common(k))
        return found


def predict_records(answerer: Answerer, dataset: Dataset, records: Sequence[Record], label: str) -> dict[Any, str]:
    """Question id -> answer for every record, in order; processes share the images."""
    warn_of_cut_texts(answerer.text, [record["question"] for record in records], label)
    groups = by_image(records)
    mine = [groups[i] for i in my_share(answerer.fabric, len(groups))]
    texts = [[record["question"] for record in group] for group in mine]
    images = [each_medium(group[0], "vqa") for group in mine]
    if images and len(images[0]) != answerer.model.images:
        raise UserError(
            f"{dataset.root}: {len(images[0])} image(s) per question, and the model was trained with "
            f"{answerer.model.images}; give another dataset or model"
        )
    found = answerer.answer(images, texts, lambda r: read_image(dataset, r), label=label)
    pairs = [
        (record["question_id"], answers[0][0])
        for group, given in zip(mine, found, strict=True)
        for record, answers in zip(group, given, strict=True)
    ]
    everywhere = dict(pair for share in gather_objects(answerer.fabric, pairs) for pair in share)
    return {record["question_id"]: everywhere[record["question_id"]] for record in records}


def evaluate_split(answerer: Answerer, dataset: Dataset, split: str) -> dict[str, float]:
    """Accuracy of a split, overall and per answer type; see :func:`score`."""
    records = answered(dataset, split)
    predictions = predict_records(answerer, dataset, records, f"{split} questions")
    return score(records, predictions, form_of(dataset))


def score(records: Sequence[Record], predictions: dict[Any, str], form: Form = answer_form) -> dict[str, float]:
    """Accuracy of predictions (question id -> answer) for records with answers.

    Both sides are compared in the same form, even if all ten annotators agree. In that case the official evaluator
    compares exact strings; where this gives another number (such as for ten raw answers "Yes"), it is reported as
    ``official_accuracy``. On GQA also ``accuracy_binary`` and ``accuracy_open``, on NLVR2 ``consistency``.

    Args:
        records: each with ``answers``.
        predictions: an answer for each of them.
        form: see :func:`vlkit.tasks.vqa.data.form_of`.
    """
    types: dict[Any, Any] = {record["question_id"]: record.get("answer_type") for record in records}
    references = {record["question_id"]: record["answers"] for record in records}
    known = None if None in types.values() else types
    metrics = vqa_metrics(predictions, references, known, form)
    official = vqa_metrics(predictions, references)["accuracy"]
    if official != metrics["accuracy"]:
        metrics["official_accuracy"] = official
    if all(str(record["id"]).startswith("nlvr2/") for record in records):
        truth = {name: given[0] == "true" for name, given in references.items()}
        judged = {name: form(predictions[name]) == "true" for name in references}
        metrics["consistency"] = nlvr2_metrics(judged, truth)["consistency"]
    return metrics | binary_and_open(answer_scores(predictions, references, form), types)


def by_question_type(
    records: Sequence[Record], predictions: Mapping[Any, str], form: Form = answer_form
) -> dict[str, float]:
    """Accuracy in percent of each question type; empty unless every record has one. Arguments as for :func:`score`."""
    if any("question_type" not in record for record in records):
        return {}
    types: dict[Any, str] = {record["question_id"]: record["question_type"] for record in records}
    references = {record["question_id"]: record["answers"] for record in records}
    return accuracy_by_group(answer_scores(predictions, references, form), types)


def columns_of(metrics: Mapping[str, float]) -> dict[str, str]:
    """Heading -> metric, for a table of results: the accuracy, and that of each answer type."""
    types = [key for key in metrics if key.startswith("accuracy_")]
    return {"accuracy": "accuracy"} | {key.removeprefix("accuracy_").replace("_", "/"): key for key in types}


def prior_metrics(
    train: Sequence[Record], test: Sequence[Record], form: Form = answer_form
) -> tuple[str, dict[str, float]]:
    """The baseline without a model: the most frequent training answer for every question, and its accuracy.

    Also ``question_words_accuracy``: the most frequent training answer among questions with the same first three words.
    """
    words = {}
    for record in train:
        words.setdefault(_first_words(record), Counter())[main_answer(record, form)] += 1
    most = sum(words.values(), Counter()).most_common(1)[0][0]
    metrics = score(test, {record["question_id"]: most for record in test}, form)
    by_words = {start: counts.most_common(1)[0][0] for start, counts in words.items()}
    guesses = {record["question_id"]: by_words.get(_first_words(record), most) for record in test}
    return most, {**metrics, "question_words_accuracy": score(test, guesses, form)["accuracy"]}


def _first_words(record: Record) -> tuple[str, ...]:
    return tuple(record["question"].lower().split()[:3])
