"""GLUE from the official TSV files, with the splits of the text-to-text adapter studies (LST, SHERL).

Labels of the official test files are hidden, so the studies make their own test sets (:data:`SMALL`, :data:`LARGE`).
The official test files become splits without labels, for submissions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from vlkit.data.boxes import Record
from vlkit.data.sources.prepare import Source
from vlkit.data.text_task import TextTask
from vlkit.errors import UserError, some
from vlkit.files import read_json, text_lines

SEED = 42
"""Seed of the permutations: fixed, independent of any run's."""
HELD_OUT = 1000
"""Training rows that validate where the official validation set is the test set."""
SMALL = ("cola", "wnli", "rte", "mrpc", "stsb")
"""Tasks whose validation set is halved: validation and test."""
LARGE = ("sst2", "qnli", "qqp")
"""Tasks that validate on part of the training set; their validation set is the test set."""
BINARY, WORDS = ("0", "1"), ("entailment", "not_entailment")


@dataclass(frozen=True)
class Layout:
    """The columns of one kind of file, 0-based.

    Attributes:
        columns: number of columns of a line; a file may have more only where ``last`` is set.
        texts: columns of the texts.
        label: column of the label; None = hidden; -1 = the last.
        header: column -> its name in the header line; empty = the file has no header.
    """

    columns: int
    texts: tuple[int, ...]
    label: int | None
    header: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Glue:
    """One of the nine tasks.

    Attributes:
        folder: its name in the official archive.
        task: fields, classes and metrics.
        train, dev, test: layouts.
        counts: rows of train and of each development file.
        skips_short: lines with too few columns are left out and counted (QQP has some).
    """

    folder: str
    task: TextTask
    train: Layout
    dev: Layout
    test: Layout
    counts: tuple[int, int]
    skips_short: bool = False


def _pair(names: tuple[str, str], label: str) -> tuple[Layout, Layout, Layout]:
    """index, text, text, label: QNLI, RTE and WNLI."""
    header = {1: names[0], 2: names[1]}
    labelled = Layout(4, (1, 2), 3, header | {3: label})
    return labelled, labelled, Layout(3, (1, 2), None, header)


def _task(word: str, fields: tuple[str, ...], metrics: tuple[str, ...], labels: tuple[str, ...] = BINARY) -> TextTask:
    return TextTask(word, fields, "classification" if labels else "regression", labels, metrics)


_ACCURACY, _SENTENCES = ("accuracy",), ("sentence1:", "sentence2:")
_COLA = Layout(4, (3,), 1)
_SST2 = Layout(2, (0,), 1, {0: "sentence", 1: "label"})
_MRPC = Layout(5, (3, 4), 0, {0: "Quality", 3: "#1 String", 4: "#2 String"})
_STSB = Layout(10, (7, 8), 9, {7: "sentence1", 8: "sentence2", 9: "score"})
_QQP = Layout(6, (3, 4), 5, {3: "question1", 4: "question2", 5: "is_duplicate"})
_MNLI = {8: "sentence1", 9: "sentence2"}
GLUE: dict[str, Glue] = {
    "cola": Glue(
        "CoLA",
        _task("cola", ("sentence:",), ("matthews",)),
        _COLA,
        _COLA,
        Layout(2, (1,), None, {1: "sentence"}),
        (8551, 1043),
    ),
    "sst2": Glue(
        "SST-2",
        _task("sst2", ("sentence:",), _ACCURACY),
        _SST2,
        _SST2,
        Layout(2, (1,), None, {1: "sentence"}),
        (67349, 872),
    ),
    "mrpc": Glue(
        "MRPC",
        _task("mrpc", _SENTENCES, ("accuracy", "f1")),
        _MRPC,
        _MRPC,
        Layout(5, (3, 4), None, {0: "index", 3: "#1 String", 4: "#2 String"}),
        (3668, 408),
    ),
    "stsb": Glue(
        "STS-B",
        _task("stsb", _SENTENCES, ("pearson", "spearman"), ()),
        _STSB,
        _STSB,
        Layout(9, (7, 8), None, {7: "sentence1", 8: "sentence2"}),
        (5749, 1500),
    ),
    "qqp": Glue(
        "QQP",
        _task("qqp", ("question1:", "question2:"), ("accuracy", "f1")),
        _QQP,
        _QQP,
        Layout(3, (1, 2), None, {1: "question1", 2: "question2"}),
        (363846, 40430),
        skips_short=True,
    ),
    "mnli": Glue(
        "MNLI",
        # The studies leave out the colon after hypothesis.
        _task("mnli", ("premise:", "hypothesis"), _ACCURACY, ("entailment", "neutral", "contradiction")),
        Layout(12, (8, 9), -1, _MNLI | {11: "gold_label"}),
        Layout(16, (8, 9), -1, _MNLI | {15: "gold_label"}),
        Layout(10, (8, 9), None, _MNLI),
        (392702, 9815),
    ),
    "qnli": Glue(
        "QNLI",
        _task("qnli", ("question:", "sentence:"), _ACCURACY, WORDS),
        *_pair(("question", "sentence"), "label"),
        (104743, 5463),
    ),
    "rte": Glue(
        "RTE", _task("rte", _SENTENCES, _ACCURACY, WORDS), *_pair(("sentence1", "sentence2"), "label"), (2490, 277)
    ),
    "wnli": Glue("WNLI", _task("wnli", _SENTENCES, _ACCURACY), *_pair(("sentence1", "sentence2"), "label"), (635, 71)),
}
"""Name -> task. The order of the classes is that of the hub's integer labels."""


def read(folder: str | Path, name: str, indices: str | Path | None = None) -> Source:
    """Read one task of GLUE.

    Args:
        folder: the task's folder, or the folder that holds the folders of all tasks.
        name: a key of :data:`GLUE`.
        indices: ``indices.json`` of an earlier run, instead of a new permutation.

    Returns:
        Splits ``train``, ``val`` and ``test``, and ``hidden`` (MNLI: ``hidden_matched``, ``hidden_mismatched``) without
        labels where the official test file is there. ``inputs["indices"]`` says where each row of the three comes from.

    Raises:
        UserError: a file is missing, is of another task or has a wrong line; names file and line.
    """
    glue, home = GLUE[name], _home(Path(folder), GLUE[name].folder)
    source = Source(f"glue-{name}", "text", {}, {"folder": str(home.resolve()), "task": name})
    files: dict[str, list[Record]] = {}
    for file in ("train", *_dev_files(name)):
        files[file] = _read(home / f"{file}.tsv", glue, glue.train if file == "train" else glue.dev, source)
        expected = glue.counts[file != "train"] + (17 if file == "dev_mismatched" else 0)
        if 2 * len(files[file]) > expected != len(files[file]):
            source.notes.append(f"{file}.tsv has {len(files[file]):,} usable rows, the official file {expected:,}")
    splits = _splits(name, {file: len(records) for file, records in files.items()}) if indices is None else None
    rows = splits or _read_indices(Path(indices or ""), name, files)
    for split, (file, numbers) in rows.items():
        source.splits[split] = [files[file][number] for number in numbers]
    for file in _test_files(name):
        if (home / f"{file}.tsv").is_file():
            split = file.replace("test", "hidden")
            source.splits[split] = _read(home / f"{file}.tsv", glue, glue.test, source)
    source.extra = {"text": glue.task.to_dict()}
    source.inputs["indices"] = {"task": name, "seed": SEED, "splits": {split: list(row) for split, row in rows.items()}}
    return source


def _home(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of the official TSV files")
    return folder / name if (folder / name).is_dir() else folder


def _dev_files(name: str) -> tuple[str, ...]:
    return ("dev_matched", "dev_mismatched") if name == "mnli" else ("dev",)


def _test_files(name: str) -> tuple[str, ...]:
    return ("test_matched", "test_mismatched") if name == "mnli" else ("test",)


def _splits(name: str, counts: dict[str, int]) -> dict[str, tuple[str, list[int]]]:
    """Split -> the file it comes from and its rows there."""
    if name == "mnli":
        whole = {file: list(range(count)) for file, count in counts.items()}
        return {
            "train": ("train", whole["train"]),
            "val": ("dev_mismatched", whole["dev_mismatched"]),
            "test": ("dev_matched", whole["dev_matched"]),
        }
    cut = "dev" if name in SMALL else "train"
    order = torch.randperm(counts[cut], generator=torch.Generator().manual_seed(SEED)).tolist()
    if name in SMALL:
        half = len(order) // 2
        return {
            "train": ("train", list(range(counts["train"]))),
            "val": ("dev", order[:half]),
            "test": ("dev", order[half:]),
        }
    held = HELD_OUT if len(order) > HELD_OUT else len(order) // 2
    return {
        "train": ("train", order[held:]),
        "val": ("train", order[:held]),
        "test": ("dev", list(range(counts["dev"]))),
    }


def _read_indices(path: Path, name: str, files: dict[str, list[Record]]) -> dict[str, tuple[str, list[int]]]:
    content = read_json(path)
    if not isinstance(content, dict) or content.get("task") != name:
        raise UserError(f"{path}: not the indices of {name}; give the indices.json that data_prep/glue.py wrote for it")
    try:
        rows = {split: (str(file), list(map(int, numbers))) for split, (file, numbers) in content["splits"].items()}
        for file, numbers in rows.values():
            if min(numbers) < 0 or max(numbers) >= len(files[file]):
                raise UserError(
                    f"{path}: row {max(numbers)} of {file}.tsv is not there; these are indices of other files"
                )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be used ({error!r}); it is not what data_prep/glue.py writes") from None
    return rows


def _read(path: Path, glue: Glue, layout: Layout, source: Source) -> list[Record]:
    """The good rows of a file; short lines of QQP and rows labelled ``-`` are left out and noted."""
    lines, first = _lines(path), 1
    if layout.header:
        _check_header(path, lines[0] if lines else "", layout)
        lines, first = lines[1:], 2
    records: list[Record] = []
    short: list[int] = []
    unsure = 0
    for number, line in enumerate(lines, start=first):
        cells = line.split("\t")
        if len(cells) < layout.columns and glue.skips_short and line:
            short.append(number)
            continue
        problem = _line_problem(line, cells, layout)
        label = None if problem or layout.label is None else cells[layout.label]
        if label == "-":
            unsure += 1
            continue
        if problem is None and layout.label is not None:
            problem = _label_problem(label, glue.task)
        if problem:
            source.wrong.append(f"{path}:{number}: {problem}")
            continue
        texts = {key: cells[column].strip() for key, column in zip(("text", "text2"), layout.texts, strict=False)}
        record: dict[str, Any] = {"id": f"{path.stem}/{number - first}", **texts}
        if label is not None:
            record["label"] = float(label) if glue.task.regression else label
        records.append(cast(Record, record))
    if short:
        source.notes.append(f"{path.name}: {len(short)} short lines were left out ({some(list(map(str, short)), 3)})")
    if unsure:
        source.notes.append(f'{path.name}: {unsure} rows labelled "-" (annotators disagree) were left out')
    return records


def _lines(path: Path) -> list[str]:
    """Lines of a TSV file, without empty ones at its end."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the folder of the official files") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; give the official file") from None
    lines = text_lines(text)
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError(f"{path}: is empty; give the official file")
    return lines


def _check_header(path: Path, line: str, layout: Layout) -> None:
    cells = line.split("\t")
    for column, name in layout.header.items():
        place = column if layout.label != column or column < layout.columns - 1 else -1
        if len(cells) <= column or cells[place].strip().lower() != name.lower():
            found = cells[column] if len(cells) > column else "nothing"
            raise UserError(
                f"{path}:1: column {column + 1} is {found!r}, expected {name!r}; is this another task's file?"
            )


def _line_problem(line: str, cells: list[str], layout: Layout) -> str | None:
    if not line.strip():
        return "the line is empty; remove it"
    if len(cells) != layout.columns:
        more = "; a text holds a tab" if len(cells) > layout.columns else ""
        return f"{len(cells)} columns, expected {layout.columns}{more}; is this another task's file?"
    blank = next((column for column in layout.texts if not cells[column].strip()), None)
    return None if blank is None else f"column {blank + 1} holds no text; remove the line"


def _label_problem(label: str | None, task: TextTask) -> str | None:
    if not task.regression:
        known = ", ".join(task.labels)
        return (
            None if label in task.labels else f"label {label!r}, expected one of {known}; is this another task's file?"
        )
    try:
        value = float(label or "")
    except ValueError:
        value = -1.0
    return None if 0 <= value <= 5 else f"score {label!r}, expected a number from 0 to 5"


def write_indices(source: Source, write: Callable[[str], None]) -> None:
    """Write where each row of the splits comes from, as JSON; ``write`` takes the text."""
    write(json.dumps(source.inputs.pop("indices")) + "\n")
