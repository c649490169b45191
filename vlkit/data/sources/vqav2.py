"""VQA v2: ``v2_OpenEnded_mscoco_*_questions.json`` with ``v2_mscoco_*_annotations.json``, one pair per split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkit.data.records import ANSWERS, Record
from vlkit.data.sources.common import take, take_id
from vlkit.data.sources.ids import image_path, other_places
from vlkit.data.sources.prepare import Counts, Source, compare_counts
from vlkit.errors import UserError
from vlkit.files import read_json

OFFICIAL: dict[str, tuple[int, int]] = {
    "train2014": (82_783, 443_757),
    "val2014": (40_504, 214_354),
    "test2015": (81_434, 447_793),
}
"""Images and questions per file."""
KEPT = ("question_type", "answer_type", "multiple_choice_answer")
"""Fields of an annotation that are copied to its record."""
_SUBTYPE = re.compile(r"(train|val|test)(-dev|-std)?(\d{4})")


@dataclass(frozen=True)
class _File:
    """A parsed file of questions or annotations.

    Attributes:
        folder: folder of its images: ``train2014``, ``test2015``.
        split: ``train``, ``val``, ``test`` or ``test-dev``.
        entries: its questions or annotations.
    """

    path: Path
    folder: str
    split: str
    entries: list[Any]


def read(questions: Sequence[str | Path], annotations: Sequence[str | Path] = ()) -> Source:
    """Read VQA v2; all ten answers are kept unchanged.

    Args:
        questions: question files, one per split; ``data_subtype`` (or the file's name) gives the split.
        annotations: annotation files, in any order. Splits other than ``train`` may have none, if their answers are
            hidden.

    Raises:
        UserError: a file is missing or is the wrong one, a split has two files, a question lacks its image or answers,
            the number of answers is not ten, or an id occurs twice; the message names the file and the record.
    """
    asked = _by_split(questions, "questions")
    answered = _by_split(annotations, "annotations")
    stray = sorted(set(answered) - set(asked))
    if stray:
        raise UserError(f"{answered[stray[0]].path}: annotations without questions; give its questions file as well")
    inputs = {
        "questions": [str(file.path.resolve()) for file in asked.values()],
        "annotations": [str(file.path.resolve()) for file in answered.values()],
    }
    source, official = Source("vqav2", "vqa", {}, inputs), {}
    for split, file in asked.items():
        if split == "train" and split not in answered:
            raise UserError(
                f"{file.path}: no annotations of this split; training needs answers, give --annotations FILE"
            )
        records, note = _join(file, answered.get(split))
        source.splits[split] = records
        source.counts[split] = (len({record["image"] for record in records}), len(records))
        source.notes += [note] if note else []
        if file.folder in OFFICIAL and split != "test-dev":
            official[split] = OFFICIAL[file.folder]
    source.notes += _compare(source, official)
    source.elsewhere = other_places
    return source


def _compare(source: Source, official: Counts) -> list[str]:
    """Notes on each split separately, because often only one split is prepared."""
    notes = []
    for split, counts in official.items():
        alone = Source(source.name, source.task, {}, None, counts={split: source.counts[split]})
        notes += compare_counts(alone, {split: counts})
    return notes


def _by_split(paths: Sequence[str | Path], field: str) -> dict[str, _File]:
    """Parse files and order them train, val, test, test-dev."""
    found: dict[str, _File] = {}
    for path in map(Path, paths):
        file = _open(path, field)
        if file.split in found:
            raise UserError(
                f'{path}: split "{file.split}" comes from {found[file.split].path.name} too; give one per split'
            )
        found[file.split] = file
    order = ("train", "val", "test", "test-std", "test-dev")
    return {split: found[split] for split in order if split in found}


def _open(path: Path, field: str) -> _File:
    content = read_json(path)
    other = {"questions": "annotations", "annotations": "questions"}[field]
    if isinstance(content, dict) and field not in content and other in content:
        raise UserError(f"{path}: holds {other}, not {field}; give it as --{other}")
    entries = take(content, field, list, f"{path}")
    if not entries:
        raise UserError(f"{path}: holds no {field}; is the download complete?")
    # Test-dev questions may be labelled test2015: only their file name distinguishes them from the whole test set.
    in_name = _SUBTYPE.search(path.name)
    stated = _SUBTYPE.fullmatch(str(content.get("data_subtype"))) or in_name
    if not stated:
        raise UserError(
            f'{path}: neither field "data_subtype" nor the file name gives a split (train2014, ...); correct it'
        )
    variant = stated[2] or (in_name[2] if in_name and in_name[1] == stated[1] else None) or ""
    return _File(path, stated[1] + stated[3], stated[1] + variant, entries)


def _join(questions: _File, annotations: _File | None) -> tuple[list[Record], str | None]:
    """Records of a split in the order of its questions, and notes for the user."""
    answers = _answers(annotations) if annotations else {}
    records, seen = [], set()
    for index, entry in enumerate(questions.entries):
        where = f"{questions.path}: questions[{index}]"
        question_id, image_id = take_id(entry, "question_id", where), take_id(entry, "image_id", where)
        if question_id in seen:
            raise UserError(f'{where}: field "question_id": {question_id} occurs twice; remove one of them')
        seen.add(question_id)
        text = take(entry, "question", str, where).encode("utf-8", "replace").decode("utf-8").strip()
        if not text:
            raise UserError(f'{where}: field "question" is blank; remove the record or add a question')
        image = image_path(questions.folder, image_id)
        record = {"id": f"vqa/{question_id}", "question_id": question_id, "image": image, "question": text}
        if annotations:
            record.update(_take_answers(answers, question_id, image_id, where, annotations))
        records.append(record)
    if not annotations:
        return records, f'split "{questions.split}" has no annotations, as its answers are hidden, and cannot be scored'
    if answers:
        return records, f"{len(answers)} annotations of {annotations.path.name} have no question and were left out"
    return records, None


def _take_answers(
    answers: dict[int, tuple[int, Record]], question_id: int, image_id: int, where: str, annotations: _File
) -> Record:
    """Take the answers of a question out of ``answers`` and return its fields."""
    if question_id not in answers:
        fix = "do the two files belong together?"
        raise UserError(f"{where}: question {question_id} has no answers in {annotations.path}; {fix}")
    of_image, fields = answers.pop(question_id)
    if of_image != image_id:
        raise UserError(f'{where}: field "image_id" is {image_id}, its annotation says {of_image}; correct one of them')
    return fields


def _answers(file: _File) -> dict[int, tuple[int, Record]]:
    """Question id -> image id and the fields of a record that the annotation gives."""
    found: dict[int, tuple[int, Record]] = {}
    for index, annotation in enumerate(file.entries):
        where = f"{file.path}: annotations[{index}]"
        question_id, image_id = take_id(annotation, "question_id", where), take_id(annotation, "image_id", where)
        if question_id in found:
            raise UserError(f'{where}: field "question_id": {question_id} occurs twice; remove one of them')
        given = take(annotation, "answers", list, where)
        if len(given) != ANSWERS:
            raise UserError(f'{where}: field "answers" has {len(given)} answers, expected {ANSWERS}; complete it')
        fields: Record = {
            "answers": [take(answer, "answer", str, f"{where}.answers[{i}]") for i, answer in enumerate(given)]
        }
        for name in KEPT:
            if annotation.get(name) is not None:
                fields[name] = take(annotation, name, str, where)
        found[question_id] = (image_id, fields)
    return found
