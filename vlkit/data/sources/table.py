"""Files of one row a line, CSV and its like or JSONL: rows with their places, and errors that name file and line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from vlkit.errors import UserError
from vlkit.files import read_text, text_lines

Row = tuple[str, dict[str, str]]
"""Place of a row for messages (file and its first line), and column -> cell."""
BlankRows = Literal["skip", "refuse"]
"""What a row without any content means; at the end of a file it is always skipped."""


def table_rows(
    path: Path,
    fix: str,
    *,
    filled: Sequence[str] = (),
    separators: str = ",",
    lower: bool = False,
    quotes: bool = True,
    blank_rows: BlankRows = "skip",
) -> Iterator[Row]:
    """Rows of a table in file order; lines end as :func:`vlkit.files.text_lines` says.

    Args:
        path: the file.
        fix: advice that ends the message about a missing file, header or column.
        filled: columns that must be there, with a value in every row.
        separators: characters that may separate cells; the one that the header has most of does.
        lower: turn names of columns into lower case.
        quotes: a cell in double quotes may hold separators and ends of lines; False = quotes are text.
        blank_rows: see :data:`BlankRows`.

    Raises:
        UserError: the file cannot be read, a column is missing or named twice, a row has another number of cells than
            the header, an empty cell that must be filled, or quotes that do not fit; the message names file and line.
    """
    lines = text_lines(read_text(path, fix))
    separator = max(separators, key=next(filter(str.strip, lines), "").count)
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=separator, quoting=quoting, strict=True)
    names, first = None, 1
    try:
        for cells in reader:
            where, first = f"{path}:{first}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                if names and blank_rows == "refuse" and any(line.strip() for line in lines[first - 1 :]):
                    raise UserError(f"{where}: the line is empty; remove it")
                continue
            if names is None:
                names = _header([name.lower() if lower else name for name in cells], filled, where, fix)
                continue
            if len(cells) != len(names):
                found = f"{len(cells)} columns where the header has {len(names)}"
                raise UserError(f"{where}: {found}; quote cells that hold a separator")
            row = dict(zip(names, cells, strict=True))
            for name in filled:
                if not row[name].strip():
                    raise UserError(f'{where}: column "{name}" is empty; write a value, or remove the row')
            yield where, row
    except csv.Error as error:
        raise UserError(f"{path}:{first}: not a row of a table ({error}); correct the quotation marks") from None
    if names is None:
        raise UserError(f"{path}: is empty; {fix}")


def _header(cells: list[str], filled: Sequence[str], where: str, fix: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    for name in names:
        if name and names.count(name) > 1:
            raise UserError(f'{where}: two columns are named "{name}"; rename one')
    lacking = [name for name in filled if name not in names]
    if lacking:
        raise UserError(f'{where}: the header has no column "{lacking[0]}"; {fix}')
    return names


def json_rows(path: Path, form: str, *, blank_rows: BlankRows = "skip") -> Iterator[tuple[str, dict[str, Any]]]:
    """Place (file and line) and object of each line of a JSONL file.

    Args:
        path: the file.
        form: the expected object, for messages.
        blank_rows: see :data:`BlankRows`.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object; the message names file and line.
    """
    lines = text_lines(read_text(path, f"give JSONL, in each line {form}"))
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            if blank_rows == "refuse" and any(rest.strip() for rest in lines[number:]):
                raise UserError(f"{where}: the line is empty; remove it")
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            raise UserError(f"{where}: not valid JSON ({reason}); write one object {form} a line") from None
        if not isinstance(value, dict):
            raise UserError(f"{where}: not a JSON object; expected is {form}")
        yield where, value
