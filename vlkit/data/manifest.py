"""Prepared datasets: a folder with ``dataset.json`` and one JSONL file per split.

``dataset.json`` says ``name``, ``task``, ``format`` (1), ``splits`` (``{split: {file, records, ...}}``), ``media_root``
(absolute, or relative to the folder) and ``source``. :mod:`vlkit.data.records` defines the fields of a record.
"""

from __future__ import annotations

import codecs
import functools
import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlkit.data.media_folder import MediaFolder
from vlkit.data.records import RECORDS, Record, media_fields, path_problem, record_problem
from vlkit.errors import UserError, some
from vlkit.files import read_json, whole_file

FORMAT = 1
MANIFEST = "dataset.json"
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset on disk. Opening reads ``dataset.json`` only; records are read by :meth:`records`.

    Attributes:
        root: the folder that holds ``dataset.json``.
        task: one of :data:`vlkit.data.records.RECORDS`.
        media_root: folder that the records' media paths are relative to.
        splits: split name -> its entry of ``dataset.json`` (``file``, ``records`` and further counts).
        source: what the dataset was made from, as written by :func:`write_dataset`.
        extra: all further fields of ``dataset.json``.
        min_side: decode JPEGs at a part of their size, as :func:`vlkit.data.images.open_image` does; None = whole.
    """

    root: Path
    name: str
    task: str
    media_root: Path
    splits: dict[str, dict[str, Any]]
    source: Any = None
    extra: dict[str, Any] = field(default_factory=dict)
    min_side: int | None = None
    _ahead: dict[str, list[Record]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def open(cls, root: str | Path, task: str | None = None) -> Dataset:
        """Read and check ``root/dataset.json``; if ``task`` is given, also check that the dataset is for that task.

        Raises:
            UserError: no such dataset, a wrong field, another task, or the media folder is gone.
        """
        root = Path(root)
        manifest = root / MANIFEST
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; give a prepared dataset (made by a script of data_prep/)")
        if not manifest.is_file():
            raise UserError(f"{root}: not a prepared dataset ({MANIFEST} is missing); make one with data_prep/")
        fields = read_json(manifest)
        problem = _manifest_problem(fields)
        if problem:
            raise UserError(f"{manifest}: {problem}")
        if task is not None and fields["task"] != task:
            raise UserError(f'{manifest}: field "task" is "{fields["task"]}", expected "{task}"; give another dataset')
        media_root = root / fields["media_root"]
        if not media_root.is_dir():
            raise UserError(f'{manifest}: field "media_root": no folder {media_root}; if the media moved, correct it')
        known = {name: fields.pop(name, None) for name in ("name", "task", "format", "splits", "media_root", "source")}
        return cls(root, known["name"], known["task"], media_root, known["splits"], known["source"], extra=fields)

    def split_file(self, split: str) -> Path:
        """Path of a split's JSONL file; an unknown split is a :class:`UserError` that lists the existing ones."""
        if split not in self.splits:
            raise UserError(f'{self.root / MANIFEST}: no split "{split}"; there are: {", ".join(self.splits)}')
        return self.root / self.splits[split]["file"]

    def records(self, split: str) -> list[Record]:
        """All records of ``split`` in file order, each checked for the dataset's task.

        Raises:
            UserError: a record is wrong; the message names file, line and field.
        """
        ahead = self._ahead.pop(split, None)
        if ahead is not None:
            return ahead
        records = []
        for line, record, problem in self.scan(split):
            if problem:
                where = f"{self.split_file(split)}:{line}" if line else f"{self.split_file(split)}"
                raise UserError(f"{where}: {problem}")
            records.append(record)
        return records

    def read_ahead(self, split: str) -> None:
        """Read the records of a split now, for the next call of :meth:`records`. Errors as there."""
        self._ahead[split] = self.records(split)

    def scan(self, split: str) -> Iterator[tuple[int, Record | None, str | None]]:
        """Yield ``(line number, record, problem)`` for every record; nothing is raised for a wrong record.

        ``problem`` is None for a good record; otherwise one phrase that names the field and the fix, and ``record``
        may be None. A problem of the whole file (a wrong number of records) comes last, with line 0.
        """
        path, misfit = self.split_file(split), RECORDS[self.task].misfit(self.extra)
        seen: dict[tuple[str, Any], int] = {}
        count = 0
        for line, record, problem in _parse_lines(path):
            count += 1
            if problem is None:
                problem = record_problem(record, self.task) or _repeated(record, self.task, line, seen)
                problem = problem or misfit(record)
            yield line, record, problem
        expected = self.splits[split].get("records")
        if count == 0:
            yield 0, None, "holds no records; prepare the dataset again"
        elif expected is not None and count != expected:
            fix = f'prepare the dataset again, or correct "records" in {MANIFEST} if the file was edited on purpose'
            yield 0, None, f"holds {count} records where {MANIFEST} says {expected}; {fix}"

    def path(self, record: Record | str) -> Path:
        """Path of a record's media file, or of a path relative to the media root.

        If no file has that name, a file whose name is the same text in another Unicode form is used
        (:class:`vlkit.data.media_folder.MediaFolder`).
        """
        relative = record if isinstance(record, str) else record[RECORDS[self.task].media or ""]
        problem = path_problem(relative)
        if problem:
            raise UserError(f"media path {relative!r} {problem}")
        path = self.media_root / relative
        if relative.isascii() or os.path.lexists(path):
            return path
        return self.media_root / (self._media.find(relative) or relative)

    @functools.cached_property
    def _media(self) -> MediaFolder:
        return MediaFolder(self.media_root)


def write_dataset(
    output: str | Path,
    *,
    name: str,
    task: str,
    splits: dict[str, list[Record]],
    media_root: str | Path,
    source: Any,
    extra: dict[str, Any] | None = None,
) -> Dataset:
    """Write a prepared dataset and open it.

    Every file is written atomically and ``dataset.json`` appears last, so its presence means that the dataset is
    complete. An existing dataset in ``output`` is replaced.

    Args:
        media_root: absolute, or relative to ``output``.
        source: JSON value that describes the origin of the records.
        extra: further top-level fields of ``dataset.json``.

    Raises:
        UserError: a record is wrong, a split is empty, or ``output`` cannot be written or contains other files with the
            same names.
    """
    output = Path(output)
    fields = {
        "name": name,
        "task": task,
        "format": FORMAT,
        "splits": {split: _split_entry(split, records, task, extra or {}) for split, records in splits.items()},
        "media_root": Path(media_root).as_posix(),
        "source": source,
        **(extra or {}),
    }
    problem = _manifest_problem(fields)
    if problem:
        raise UserError(f"dataset {name}: {problem}")
    try:
        _write_files(output, fields, splits)
    except OSError as error:
        raise UserError(f"{output}: cannot write ({error.strerror or error}); choose another --output") from error
    except UnicodeEncodeError as error:
        text = error.object[max(0, error.start - 30) : error.start + 30]
        raise UserError(f"dataset {name}: {text!r} is not valid Unicode; correct the annotations") from error
    return Dataset.open(output)


def _split_entry(split: str, records: list[Record], task: str, extra: dict[str, Any]) -> dict[str, Any]:
    """Check the records of a split; return its entry for ``dataset.json``."""
    if not _SPLIT_NAME.fullmatch(split):
        raise UserError(f'split "{split}": use letters, digits, "_", "-" and "." in its name')
    if not records:
        raise UserError(f'split "{split}" has no records; leave it out or give it some')
    seen: dict[tuple[str, Any], int] = {}
    misfit = RECORDS[task].misfit(extra)
    for number, record in enumerate(records, start=1):
        problem = record_problem(record, task) or _repeated(record, task, number, seen) or misfit(record)
        if problem:
            label = record.get("id", number) if isinstance(record, dict) else number
            raise UserError(f'split "{split}", record {label}: {problem}')
    entry = {"file": f"{split}.jsonl", "records": len(records)}
    if RECORDS[task].media is not None:
        entry["media"] = len({record[name] for record in records for name in media_fields(record, task)})
    if "texts" in records[0]:
        entry["texts"] = sum(len(record["texts"]) for record in records)
    return entry


def _write_files(output: Path, fields: dict[str, Any], splits: dict[str, list[Record]]) -> None:
    manifest = output / MANIFEST
    if not manifest.exists():
        others = [entry["file"] for entry in fields["splits"].values() if (output / entry["file"]).exists()]
        if others:
            raise UserError(f"{output}: holds {some(others)} but no {MANIFEST}; choose an empty --output, or move them")
    # The stack closes last-in first-out: the manifest is entered first, so it gets its name after all splits.
    with ExitStack() as stack:
        temporary = stack.enter_context(whole_file(manifest))
        content = json.dumps(fields, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        # A folder whose name is not UTF-8 is written as JSON escapes and read back as the same name.
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
        for split, records in splits.items():
            temporary = stack.enter_context(whole_file(output / fields["splits"][split]["file"]))
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                for record in records:
                    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        # Until the renames are done, the folder must not look complete.
        manifest.unlink(missing_ok=True)


def _parse_lines(path: Path) -> Iterator[tuple[int, Any, str | None]]:
    """Yield ``(line number, parsed value, problem)`` for each line of a JSONL file that is not blank."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed by the with below; only the opening is guarded)
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror}); prepare the dataset again") from None
    with file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)  # an editor may have added it
            if not line or line.isspace():
                continue
            try:
                yield number, json.loads(line.decode("utf-8")), None
            except UnicodeDecodeError:
                yield number, None, "not UTF-8 text; save the file as UTF-8"
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", str(error))
                yield number, None, f"not valid JSON ({reason}); write one JSON object per line"


def _repeated(record: Record, task: str, line: int, seen: dict[tuple[str, Any], int]) -> str | None:
    for name in RECORDS[task].unique:
        first = seen.setdefault((name, record[name]), line)
        if first != line:
            return f'field "{name}": {record[name]!r} is already used in line {first}; make it unique'
    return None


def _manifest_problem(fields: Any) -> str | None:
    if not isinstance(fields, dict):
        return "is not a JSON object; prepare the dataset again"
    for name, kind in (("name", str), ("task", str), ("format", int), ("splits", dict), ("media_root", str)):
        if not isinstance(fields.get(name), kind):
            return f'field "{name}" is missing or not of type {kind.__name__}; prepare the dataset again'
    if fields["format"] != FORMAT:
        return f'field "format" is {fields["format"]}, this version reads {FORMAT}; update vlkit or prepare it again'
    if fields["task"] not in RECORDS:
        return f'field "task": unknown task "{fields["task"]}"; known are {", ".join(RECORDS)}'
    if not fields["splits"]:
        return 'field "splits" is empty; a dataset needs at least one split'
    for split, entry in fields["splits"].items():
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            return f'field "splits.{split}.file" is missing; name the JSONL file of the split'
        problem = path_problem(entry["file"])
        if problem:
            return f'field "splits.{split}.file": {entry["file"]!r} {problem}'
        if not isinstance(entry.get("records", 0), int):
            return f'field "splits.{split}.records" is not a whole number; correct it or leave it out'
    return RECORDS[fields["task"]].dataset_problem(fields)
