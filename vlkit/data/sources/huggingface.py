"""Rows with images (Parquet, Hugging Face datasets) as a dataset for retrieval or classification."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlkit.data.sources.folder import split_of
from vlkit.data.sources.image_folder import split_classes
from vlkit.data.sources.labelled import in_order
from vlkit.data.sources.named_splits import plain_split, split_to_divide
from vlkit.data.sources.prepare import Source, add_record
from vlkit.data.sources.rows import PREFIX, Columns, image_bytes, opened, suffix_of, texts_of
from vlkit.errors import UserError, some
from vlkit.files import whole_file

MEDIA = "media"
"""Folder of the written images, in the prepared dataset."""


@dataclass
class Row:
    """A row: its split, its place for messages, its image as a file below the media folder, and what else it holds."""

    split: str
    where: str
    id: str
    image: str
    texts: list[str]
    label: str | None


def read(
    name: str,
    task: Literal["retrieval", "classification"],
    output: Path,
    columns: str = "",
    *,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Source:
    """Read a table, and write its images to files in ``output/media``, named by their content.

    Rows with the same image are one record for retrieval, with all their captions.

    Args:
        name: see :func:`vlkit.data.sources.rows.opened`.
        task: what the records are for.
        output: the folder of the prepared dataset.
        columns: ``image=COLUMN,texts=COLUMN,…``; what is missing is guessed from names and types.
        val, test: shares for these splits: both if the table has a single split, and ``val`` of the training rows if
            there is none for validation. Decided by a hash of the image and ``seed``.
        progress: called with the numbers of rows read and in all.

    Raises:
        UserError: the table cannot be read, or a column is missing.
    """
    place = Path(name.removeprefix(PREFIX))
    with opened(name) as splits:
        first = next(iter(splits.values()), None)
        if first is None or not sum(map(len, splits.values())):
            raise UserError(f"{name}: holds no rows")
        chosen = Columns.of(columns, first.features, task, divided=len(splits) > 1)
        title = re.sub(r"[^\w.-]+", "-", place.name.partition("@")[0].partition(":")[0]).strip("-.") or "rows"
        inputs = {"rows": name if not place.exists() else f"{PREFIX}{place.resolve()}", "columns": vars(chosen)}
        source = Source(title, task, {}, inputs)
        classes = getattr(first.features.get(chosen.label or ""), "names", None)
        rows = list(_rows(splits, chosen, place, output / MEDIA, classes, source, progress))
    if not rows:
        raise UserError(f"{name}: no row can be used ({some(source.wrong, 1)})")
    _divide(rows, source, task, val, test, seed)
    order = ("train", "val", "test")
    rows.sort(key=lambda row: order.index(row.split) if row.split in order else len(order))
    add = _add_retrieval if task == "retrieval" else _add_classification
    add(source, rows, classes)
    return source


def _rows(
    splits: dict[str, Any],
    columns: Columns,
    place: Path,
    media: Path,
    classes: list[str] | None,
    source: Source,
    progress: Callable[[int, int], None],
) -> Iterator[Row]:
    """Every usable row; the others go to ``source.wrong``."""
    total, done = sum(map(len, splits.values())), 0
    folder = place if place.is_dir() else place.parent
    wanted = [columns.image, *columns.texts, *filter(None, (columns.label, columns.split, columns.id))]
    for own_split, table in splits.items():
        for number, row in enumerate(table.select_columns(list(dict.fromkeys(wanted)))):
            where = f"split {own_split}, row {number}"
            done += 1
            if done % 256 == 0 or done == total:
                progress(done, total)
            try:
                label = None if columns.label is None else _label(row[columns.label], classes)
                image = _written(image_bytes(row[columns.image], folder), media)
            except ValueError as error:
                source.wrong.append(f"{source.name}: {where}: {error}")
                continue
            split = plain_split(str(own_split if columns.split is None else row[columns.split]))
            name = f"{own_split}/{number}" if columns.id is None else str(row[columns.id])
            yield Row(split, where, f"{source.name}/{name}", image, texts_of(row, columns.texts), label)


def _written(content: bytes, media: Path) -> str:
    """Write an image, if it is not there yet; returns its path below ``media``."""
    digest = hashlib.sha256(content).hexdigest()[:32]
    name = f"{digest[:2]}/{digest}{suffix_of(content)}"
    if not (media / name).exists():
        (media / name).parent.mkdir(parents=True, exist_ok=True)
        with whole_file(media / name) as temporary:
            temporary.write_bytes(content)
    return name


def _label(value: Any, classes: list[str] | None) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and classes is not None:
        if not 0 <= value < len(classes):
            raise ValueError(f"label {value} is hidden or unknown")
        return classes[value]
    text = "" if value is None else str(value).strip()
    if not text or isinstance(value, list | dict):
        raise ValueError("no label" if value is None or not text else "the label is a list; an image has one class")
    return text


def _divide(rows: list[Row], source: Source, task: str, val: float, test: float, seed: int) -> None:
    """Make the splits that the table lacks."""
    found = split_to_divide({row.split for row in rows}, val, test)
    if found is None:
        return
    only, val, test = found
    part = [row for row in rows if row.split == only]
    if task == "classification":
        made = split_classes({row.image: row.label or "" for row in part}, val=val, test=test, seed=seed)
    else:
        made = {row.image: split_of(row.image, val=val, test=test, seed=seed) for row in part}
    for row in part:
        row.split = made[row.image]
    shares = f"val {val:g}" + (f", test {test:g}" if test else "")
    source.notes.append(f'split "{only}" was divided by a hash of the image: {shares} (--val, --test)')


def _add_retrieval(source: Source, rows: list[Row], classes: list[str] | None) -> None:
    """One record per image of a split, with the captions of all its rows."""
    merged: dict[tuple[str, str], Row] = {}
    for row in rows:
        first = merged.setdefault((row.split, row.image), row)
        if first is not row:
            first.texts += row.texts
    for row in merged.values():
        add_record(source, row.split, {"id": row.id, "image": row.image}, row.texts)
    if len(merged) < len(rows):
        source.notes.append(f"{len(rows):,} rows hold {len(merged):,} images; the captions of an image were joined")


def _add_classification(source: Source, rows: list[Row], classes: list[str] | None) -> None:
    """One record per row."""
    known: dict[str, Row] = {}
    for row in rows:
        if known.setdefault(row.image, row).label != row.label:
            other = known[row.image]
            source.wrong.append(
                f'{source.name}: {row.where}: has class "{row.label}", the same image in {other.where} "{other.label}"'
            )
            continue
        source.splits.setdefault(row.split, []).append({"id": row.id, "image": row.image, "label": row.label})
    source.extra["classes"] = classes or in_order(row.label or "" for row in rows)
