"""Visual questions as examples: images with their questions, answer vocabulary, soft targets."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlkit.data.images import identify_record, read_image
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record, each_medium, media_fields
from vlkit.errors import UserError
from vlkit.files import read_json
from vlkit.metrics.vqa import Form, build_vocabulary, soft_target
from vlkit.metrics.vqa_text import answer_form
from vlkit.tap_cache.rows import TapBatch
from vlkit.tasks.retrieval.data import Transform
from vlkit.tasks.splits import Splits, reported_split

log = logging.getLogger(__name__)

Example = tuple[Tensor, list[Record]]


def images_per_question(dataset: Dataset) -> int:
    """1, or 2 where questions are about pairs of images (NLVR2)."""
    return dataset.extra.get("images", 1)


class ImageQuestions:
    """Examples of one image (or pair of images) and its questions: the image is encoded once for all of them.

    Args:
        dataset: a prepared dataset; I is its :func:`images_per_question`.
        split: which split; every question must have answers.
        transform: image -> [3, H, W].
        per_picture: most questions per image (or pair) in an example, drawn anew on each access; 0 = all.

    Raises:
        UserError: a question of the split has no answers.
    """

    def __init__(self, dataset: Dataset, split: str, transform: Transform, per_picture: int = 0) -> None:
        self.dataset, self.transform, self.per_picture = dataset, transform, per_picture
        self.groups = by_image(answered(dataset, split))
        self.images_each = images_per_question(dataset)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Example:
        """Pixels [I, 3, H, W] and the records of the questions."""
        numbers, group = self.unopened(index)
        return self.load(numbers.tolist()), group

    # --- for training with --cache: see vlkit.tap_cache.images.ImagesWithTexts ---

    def unopened(self, index: int) -> Example:
        """The example with the numbers of its images [I] int64 in place of pixels."""
        group = self.groups[index]
        if 0 < self.per_picture < len(group):
            group = random.sample(group, self.per_picture)
        first = index * self.images_each
        return torch.arange(first, first + self.images_each), group

    @property
    def image_count(self) -> int:
        """Number of images of all examples."""
        return len(self.groups) * self.images_each

    @property
    def texts(self) -> list[str]:
        """The questions of all records."""
        return [record["question"] for group in self.groups for record in group]

    def identify(self, number: int) -> list[Any]:
        """A value that changes when the image of this number does."""
        return identify_record(self.dataset, self._record(number))

    def load(self, numbers: list[int]) -> Tensor:
        """Images by number, [n, 3, H, W]; deterministic without augmentation."""
        return torch.stack([self.transform(read_image(self.dataset, self._record(number))) for number in numbers])

    def _record(self, number: int) -> Record:
        index, place = divmod(number, self.images_each)
        return each_medium(self.groups[index][0], "vqa")[place]


def answered(dataset: Dataset, split: str) -> list[Record]:
    """The records of a split, all with answers.

    Raises:
        UserError: unknown split, or a question without answers.
    """
    records = dataset.records(split)
    bare = next((record for record in records if "answers" not in record), None)
    if bare is not None:
        raise UserError(
            f"{dataset.split_file(split)}: question {bare['question_id']} has no answers; choose a split that has them "
            "(tasks/vqa/predict.py answers one that has none)"
        )
    return records


def answered_split(dataset: Dataset, data: Splits) -> str:
    """The split to report on (:func:`vlkit.tasks.splits.reported_split`): the validation split if the answers of the
    test split are hidden.

    Raises:
        UserError: a split does not exist, or a question of the training or validation split has no answers.
    """
    test = reported_split(dataset, data)
    for split in (data.train, data.validation):
        answered(dataset, split)
    return test if all("answers" in record for record in dataset.records(test)) else data.validation


def by_image(records: Sequence[Record]) -> list[list[Record]]:
    """Records grouped by image or pair of images, in the order of their first question."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[name] for name in media_fields(record, "vqa")), []).append(record)
    return list(groups.values())


class Batch(NamedTuple):
    """P images (or pairs of images) and B questions of a training step."""

    pixels: Tensor | TapBatch
    """[P * I, 3, H, W], or the cache rows of P * I images; I is 1, or 2 for pairs."""
    ids: Tensor | TapBatch
    """[B, L] int64, the questions' tokens, or the cache rows of B questions."""
    owner: Tensor
    """[B] int64, the image or pair of each question."""
    targets: Tensor
    """[B, A] float soft targets of a classifier, or [B, T] int64 answer tokens of a decoder."""
    scores: Tensor | None = None
    """[B] float32, the soft score of each answer that a decoder writes."""


class QuestionCollate:
    """Examples of :class:`ImageQuestions` -> :class:`Batch`.

    Args:
        tokenize: questions -> ids [B, L].
        targets: one list of ten answers per question -> targets (:class:`SoftTargets`), or targets and scores
            (:class:`AnswerTokens`).
        stack: the examples' pixels (or numbers of images) -> the batch's ``pixels``.
    """

    def __init__(
        self,
        tokenize: Callable[[list[str]], Tensor | TapBatch],
        targets: Callable[[list[list[str]]], Tensor | tuple[Tensor, Tensor]],
        stack: Callable[[list[Tensor]], Tensor | TapBatch] = torch.cat,
    ) -> None:
        self.tokenize, self.targets, self.stack = tokenize, targets, stack

    def __call__(self, examples: list[Example]) -> Batch:
        pixels = self.stack([image for image, _ in examples])
        owner = torch.tensor([place for place, (_, group) in enumerate(examples) for _ in group])
        records = [record for _, group in examples for record in group]
        ids = self.tokenize([record["question"] for record in records])
        found = self.targets([record["answers"] for record in records])
        return Batch(pixels, ids, owner, *(found if isinstance(found, tuple) else (found,)))


def form_of(dataset: Dataset) -> Form:
    """The form in which the answers of a dataset are compared: GQA compares exact strings, every other dataset
    normalised ones, so that "Yes", "yes" and "yes." are the same answer.
    """
    return str if dataset.name == "gqa" else answer_form


class SoftTargets:
    """Ten answers of each question -> [B, A] float32 scores of the vocabulary's answers.

    Annotated answers and the vocabulary are compared in the same form; labels with the same form share the score.

    Args:
        vocabulary: A answers in label order, raw or normalised.
        form: see :func:`form_of`.
    """

    def __init__(self, vocabulary: Sequence[str], form: Form = answer_form) -> None:
        self.form, self.size = form, len(vocabulary)
        labels: dict[str, list[int]] = {}
        for label, answer in enumerate(vocabulary):
            for key in {answer, form(answer)}:  # a few forms change when normalised again
                labels.setdefault(key, []).append(label)
        self.groups = {key: group for group, key in enumerate(labels)}
        self.labels = list(labels.values())

    def __call__(self, answers: list[list[str]]) -> Tensor:
        targets = torch.zeros(len(answers), self.size)
        for row, given in zip(targets, answers, strict=True):
            for group, score in self._scores(given).items():
                row[self.labels[group]] = score
        return targets

    def unlabelled(self, answers: Sequence[Sequence[str]]) -> int:
        """Number of questions none of whose answers is in the vocabulary."""
        return sum(not self._scores(given) for given in answers)

    def _scores(self, answers: Sequence[str]) -> dict[int, float]:
        return soft_target([self.form(answer) for answer in answers], self.groups)


def warn_of_unlabelled(dataset: Dataset, splits: Sequence[str], vocabulary: Sequence[str]) -> None:
    """Log for each split how many questions have no answer in the vocabulary; nothing if all have one."""
    targets = SoftTargets(vocabulary, form_of(dataset))
    for split in dict.fromkeys(splits):
        answers = [record["answers"] for record in dataset.records(split) if "answers" in record]
        count = targets.unlabelled(answers)
        if count:
            log.warning(
                f"{count:,} of {len(answers):,} questions of {dataset.name}/{split} have no answer among the "
                f"{len(vocabulary):,} of the vocabulary: the classifier cannot answer them correctly"
            )


class AnswerTokens:
    """Ten answers of each question -> tokens [B, T] int64 of one of them, end token included, and its soft score [B].

    The answer is drawn on each call, with a probability in proportion to its score (VL-T5).

    Args:
        tokenize: texts -> ids [B, T], padded on the right.
        form: answer -> the text to write; see :func:`form_of`.
    """

    def __init__(self, tokenize: Callable[[list[str]], Tensor], form: Form = answer_form) -> None:
        self.tokenize, self.form = tokenize, form

    def __call__(self, answers: list[list[str]]) -> tuple[Tensor, Tensor]:
        drawn = []
        for given in answers:
            forms = list(map(self.form, given))
            scores = soft_target(forms, {form: form for form in forms})
            drawn += random.choices(list(scores.items()), list(scores.values()))
        texts, values = zip(*drawn, strict=True)
        return self.tokenize(list(texts)), torch.tensor(values)


def answer_vocabulary(dataset: Dataset, splits: Sequence[str], min_questions: int | None = None) -> list[str]:
    """The answers a classifier chooses from, in order of first occurrence.

    Counts each question's ``multiple_choice_answer``, or its most frequent answer where the record has none, in the
    form of :func:`form_of`.

    Args:
        dataset: a prepared dataset.
        splits: splits whose answers count.
        min_questions: an answer is kept if at least this number of questions have it; None = 9, or 1 where every
            question has only one answer.

    Raises:
        UserError: no answer occurs that often.
    """
    records = [record for split in splits for record in dataset.records(split) if "answers" in record]
    form = form_of(dataset)
    if min_questions is None:
        min_questions = 1 if all(len(set(map(form, record["answers"]))) == 1 for record in records) else 9
    vocabulary = build_vocabulary(
        [(record["id"], main_answer(record, form)) for record in records], min_questions, form
    )
    if not vocabulary:
        raise UserError(
            f"--data.min_questions {min_questions}: no answer occurs that often among the {len(records)} of "
            f"{dataset.root}; give a smaller number"
        )
    return vocabulary


def two_answers(dataset: Dataset, splits: Sequence[str], tokenize: Callable[[list[str]], Tensor]) -> list[str]:
    """The two answers of a dataset that has no others, such as NLVR2's "true" and "false": a decoder's first logits
    decide between them. Empty if there are more, or if their first tokens do not differ.

    Args:
        dataset: a prepared dataset.
        splits: splits whose answers count.
        tokenize: texts -> ids [B, T].
    """
    form = form_of(dataset)
    found = {form(answer) for split in splits for record in answered(dataset, split) for answer in record["answers"]}
    if len(found) != 2:
        return []
    answers = sorted(found)
    first, second = tokenize(answers)[:, 0].tolist()
    return answers if first != second else []


def main_answer(record: Record, form: Form = answer_form) -> str:
    """The answer that represents the ten, in its form: the annotation's own choice, else the most frequent one."""
    stated = record.get("multiple_choice_answer")
    return form(stated) if stated else Counter(map(form, record["answers"])).most_common(1)[0][0]


def read_vocabulary(path: Path) -> list[str]:
    """Read the answers of a classifier in label order: a JSON list, or an object answer -> label.

    Raises:
        UserError: wrong content, a duplicate answer, or labels that are not 0, 1, 2, ...
    """
    content = read_json(path)
    if isinstance(content, dict):
        if sorted(content.values(), key=str) != sorted(range(len(content)), key=str):
            raise UserError(f"{path}: labels are not 0, 1, 2, ...; give answer -> label, or a list")
        content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not content or not all(isinstance(answer, str) for answer in content):
        raise UserError(f"{path}: neither a list of answers nor answer -> label; give the classifier's vocabulary")
    if len(set(content)) < len(content):
        twice = Counter(content).most_common(1)[0][0]
        raise UserError(f"{path}: answer {twice!r} occurs twice; remove one of them")
    return content
