"""Own texts with labels: CSV or TSV with a header, JSONL, or a JSON list of objects."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlkit.data.boxes import Record
from vlkit.data.sources.folder import split_of
from vlkit.data.sources.named_splits import plain_split
from vlkit.data.sources.prepare import Source
from vlkit.data.sources.table import json_rows, table_rows
from vlkit.data.text_task import TextTask
from vlkit.errors import UserError, some
from vlkit.files import read_json

FORMS = "give a CSV or TSV with a header line, JSONL, or a JSON list of objects"
FIRST = ("text", "sentence", "sentence1", "text1", "premise", "question", "question1")
SECOND = ("text2", "sentence2", "hypothesis", "question2", "answer")
LABELS = ("label", "labels", "class", "score", "target")
SPLIT = "split"
EXAMPLE = '{"text": "fine", "label": "good"}'


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read; None = found by their names (:data:`FIRST`, :data:`SECOND`, :data:`LABELS`)."""

    text: str | None = None
    text2: str | None = None
    label: str | None = None


def read(
    files: Mapping[str, Path],
    columns: Columns,
    word: str,
    kind: Literal["auto", "classification", "regression"] = "auto",
    *,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> Source:
    """Read labelled texts.

    Args:
        files: split -> file. A file for ``train`` alone is divided by its column ``split``, or by ``val``, ``test`` and
            ``seed``, each row by a hash of its texts.
        columns: the columns.
        word: the word that a text-to-text model reads first.
        kind: auto = regression if every label is a number and one has a decimal point.
        val, test: shares of a file that is divided.
        seed: of the division.

    Raises:
        UserError: a file or a line cannot be read, or a label is missing in a split to train or measure on.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise UserError(f"--val {val} and --test {test}: give shares of at least 0 that leave some texts to train on")
    source = Source(word, "text", {}, {"files": {split: str(Path(path).resolve()) for split, path in files.items()}})
    divide = list(files) == ["train"]
    names: tuple[str, ...] = ()
    blank: dict[str, str] = {}
    for split, path in files.items():
        for where, row in _rows(Path(path)):
            text, text2, label = _chosen(row, columns, where)
            names = (text, text2) if text2 else (text,)
            record: Record = {"text": _text(row, text, where)}
            if text2:
                record["text2"] = _text(row, text2, where)
            value = None if label is None else row[label]
            if value is not None and value != "":
                record["label"] = value
            own = split
            if divide:
                key = json.dumps([record["text"], record.get("text2")])
                stated = row.get(SPLIT)
                own = plain_split(str(stated)) if stated else split_of(key, val=val, test=test, seed=seed)
            if "label" not in record and label is not None:
                blank.setdefault(own, where)
            records = source.splits.setdefault(own, [])
            records.append({"id": f"{own}/{len(records)}", **record})
    for split, where in blank.items():
        if any("label" in record for record in source.splits[split]):
            raise UserError(f'{where}: has no label, and other rows of split "{split}" have one; label it or remove it')
    source.extra = {"text": _task(source, word, names, kind).to_dict()}
    return source


def _task(source: Source, word: str, names: tuple[str, ...], kind: str) -> TextTask:
    """The task, from the labels of all splits; turns the labels into what it asks for."""
    records = [record for split in source.splits.values() for record in split if "label" in record]
    if not records:
        raise UserError(f"no label in {some(list(source.inputs['files'].values()))}; name its column with --label")
    numbers = [_number(record["label"]) for record in records]
    pointed = any(isinstance(r["label"], float) or "." in str(r["label"]) for r in records)
    if kind == "auto":
        kind = "regression" if pointed and None not in numbers else "classification"
    fields = tuple(f"{name}:" for name in names)
    if kind == "regression":
        for record, number in zip(records, numbers, strict=True):
            if number is None:
                raise UserError(f"{record['id']}: label {record['label']!r} is not a number; use --kind classification")
            record["label"] = number
        return TextTask(word, fields, "regression", (), ("pearson", "spearman"))
    for record in records:
        record["label"] = str(record["label"])
    labels = tuple(sorted({record["label"] for record in records}))
    if len(labels) < 2:
        raise UserError(f"every label is {next(iter(labels))!r}; a task needs two classes or more")
    metrics = ("accuracy", "f1") if len(labels) == 2 else ("accuracy",)
    return TextTask(word, fields, "classification", labels, metrics)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each row stands, and its fields."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        yield from json_rows(path, EXAMPLE, blank_rows="refuse")
    elif suffix == ".json":
        content = read_json(path, FORMS)
        if not isinstance(content, list):
            raise UserError(f"{path}: not a list of objects; {FORMS}")
        for index, value in enumerate(content):
            yield f"{path}: [{index}]", _object(value, f"{path}: [{index}]")
    elif suffix in (".csv", ".tsv"):
        # A TSV has no quoting, as in GLUE: a quotation mark is part of a sentence.
        tabs = suffix == ".tsv"
        yield from table_rows(path, FORMS, separators="\t" if tabs else ",", quotes=not tabs, blank_rows="refuse")
    else:
        raise UserError(f"{path}: unknown ending {suffix!r}; {FORMS}")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a JSON object; expected is {EXAMPLE}")
    return value


def _chosen(row: Mapping[str, Any], columns: Columns, where: str) -> tuple[str, str | None, str | None]:
    """Names of the columns of a row."""
    known = {name.lower(): name for name in row}

    def find(flag: str, stated: str | None, usual: tuple[str, ...]) -> str | None:
        if stated is None:
            return next((known[name] for name in usual if name in known), None)
        if stated not in row:
            raise UserError(f"{where}: no column {stated!r} ({flag}); there are {some(list(row), 8)}")
        return stated

    text = find("--text", columns.text, FIRST)
    if text is None:
        raise UserError(f"{where}: no column for the text; name it with --text, there are {some(list(row), 8)}")
    text2 = find("--text2", columns.text2, SECOND)
    label = find("--label", columns.label, LABELS)
    return text, None if text2 == text else text2, label


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: column {name!r} holds no text; write one, or remove the line")
    return value.strip()


def _number(label: Any) -> float | None:
    try:
        value = float(label)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
