"""GQA: ``{train,val,testdev,test,challenge}_{balanced,all}_questions.json``, or the LXMERT family's lists of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlkit.data.records import ANSWERS, Record
from vlkit.data.sources.common import take
from vlkit.data.sources.prepare import Source
from vlkit.errors import UserError
from vlkit.files import read_json

SPLITS = ("train", "val", "testdev", "test", "challenge")
OFFICIAL = {
    ("train", "balanced"): 943_000,
    ("val", "balanced"): 132_062,
    ("testdev", "balanced"): 12_578,
    ("test", "balanced"): 95_336,
    ("challenge", "balanced"): 50_726,
    ("train", "all"): 14_305_356,
    ("val", "all"): 2_011_853,
}
"""Questions per file (train_all: in its ten files together)."""
_NAME = re.compile(r"(train|val(?:id)?|testdev|test|challenge)(?:_(balanced|all))?(?:_questions)?(?:_\d+)?")


def read(questions: Sequence[str | Path]) -> Source:
    """Read GQA. Question ids remain texts, because leading zeros matter.

    The single answer of a question is repeated ten times, so that the VQA metric equals GQA's exact match; it is not
    normalised. ``answer_type`` and ``question_type`` are its structural and semantic type.

    Args:
        questions: question files, one per split; for a split in several files (train_all), the folder that holds them.
            The name of the file (or folder) gives the split. Test and challenge have no answers.

    Raises:
        UserError: a file is missing or is the wrong one, a split has two files, a question lacks image, text or answer,
            or an id occurs twice; the message names the file and the question.
    """
    found: dict[str, Path] = {}
    source = Source("gqa", "vqa", {}, {"questions": [str(Path(path).resolve()) for path in questions]})
    for path in map(Path, questions):
        split, variant = _split_of(path)
        if split in found:
            raise UserError(f'{path}: split "{split}" comes from {found[split].name} too; give one per split')
        found[split] = path
        records = _read_split(path, split)
        source.splits[split] = records
        source.counts[split] = (len({record["image"] for record in records}), len(records))
        source.notes += _notes(split, variant, records)
    source.splits = {split: source.splits[split] for split in SPLITS if split in source.splits}
    source.elsewhere = lambda path: [f"images/{path}"]
    return source


def _split_of(path: Path) -> tuple[str, str | None]:
    match = _NAME.fullmatch(path.stem)
    if not match:
        raise UserError(
            f"{path}: the name contains no split; keep the official one (train_balanced_questions.json, ...)"
        )
    return {"valid": "val"}.get(match[1], match[1]), match[2]


def _notes(split: str, variant: str | None, records: list[Record]) -> list[str]:
    notes, official = [], OFFICIAL.get((split, variant or ""))
    if official and official // 2 < len(records) != official:
        notes.append(f'split "{split}" has {len(records):,} questions, the official file {official:,}')
    if variant == "all" and split in ("val", "testdev"):
        notes.append(f'split "{split}" holds all questions; official figures use only the balanced ones')
    if "answers" not in records[0]:
        notes.append(f'split "{split}" has no answers, as they are hidden, and cannot be scored')
    return notes


def _read_split(path: Path, split: str) -> list[Record]:
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path}: holds no JSON file; give the folder of {split}_all_questions_*.json")
    records: dict[str, Record] = {}
    for file in files:
        for where, question_id, entry in _entries(file):
            if question_id in records:
                raise UserError(f"{where}: question {question_id} occurs twice; remove one of them")
            records[question_id] = _record(question_id, entry, where)
    bare = [number for number, record in records.items() if "answers" not in record]
    if bare and (split in ("train", "val", "testdev") or len(bare) < len(records)):
        raise UserError(f'{path}: question {bare[0]}: field "answer" is missing; is this the official file?')
    return list(records.values())


def _entries(file: Path) -> Iterator[tuple[str, str, Any]]:
    """Place, question id and content of each question, in GQA's names of fields."""
    content = read_json(file)
    if not isinstance(content, (dict, list)) or not content:
        raise UserError(f"{file}: holds no questions; is this the official file?")
    if isinstance(content, dict):
        for question_id, entry in content.items():
            yield f"{file}: question {question_id}", question_id, entry
        return
    for index, entry in enumerate(content):
        where = f"{file}: entry {index}"
        question_id = take(entry, "question_id", (str, int), where)
        fields = {"imageId": take(entry, "img_id", (str, int), where), "question": take(entry, "sent", str, where)}
        label = entry.get("label")
        if isinstance(label, dict) and label:
            scores = {answer: take(label, answer, (int, float), f"{where}: label") for answer in label}
            fields["answer"] = max(scores, key=scores.__getitem__)
        yield where, str(question_id), fields


def _record(question_id: str, entry: Any, where: str) -> Record:
    image = take(entry, "imageId", (str, int), where)
    text = take(entry, "question", str, where).encode("utf-8", "replace").decode("utf-8").strip()
    if not text:
        raise UserError(f'{where}: field "question" is blank; remove the record or add a question')
    record = {"id": f"gqa/{question_id}", "question_id": question_id, "image": f"{image}.jpg", "question": text}
    if "answer" in entry:
        answer = take(entry, "answer", str, where)
        record |= {"answers": [answer] * ANSWERS, "multiple_choice_answer": answer}
    types = entry.get("types")
    if isinstance(types, dict):
        for name, field in (("structural", "answer_type"), ("semantic", "question_type")):
            if types.get(name) is not None:
                record[field] = take(types, name, str, f"{where}.types")
    return record
