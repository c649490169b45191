"""Read and check fields of official files; errors name file, record and field."""

from __future__ import annotations

import re
from typing import Any

from vlkit.errors import UserError

_WHOLE_NUMBER = re.compile(r"\s*([0-9]{1,18})(?:\.0*)?\s*")


def take(value: Any, field: str, kind: type | tuple[type, ...], where: str) -> Any:
    """``value[field]`` if it exists and has type ``kind``; else a :class:`UserError` that names place and field."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a JSON object; is this the official file?")
    if not isinstance(value.get(field), kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        state = "missing" if field not in value else f"not of type {' or '.join(k.__name__ for k in kinds)}"
        raise UserError(f'{where}: field "{field}" is {state}; is this the official file?')
    return value[field]


def take_id(value: Any, field: str, where: str) -> int:
    """``value[field]`` as a whole number; a text (``"123"``) or a float (``123.0``) is accepted too.

    Spreadsheets write ids as texts, tables with missing values write them as floating-point numbers.

    Raises:
        UserError: it is not a whole number; the message names place and field.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a JSON object; is this the official file?")
    found = value.get(field)
    number = whole_number(found)
    if number is None:
        state = "missing" if field not in value else f"{str(found)[:40]!r}, not a whole number"
        raise UserError(f'{where}: field "{field}" is {state}; is this the official file?')
    return number


def whole_number(value: Any) -> int | None:
    """The whole number that ``value`` is or spells (``7``, ``"7"``, ``"007"``, ``7.0``, ``"7.0"``); else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else None
    match = _WHOLE_NUMBER.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) if match else None
