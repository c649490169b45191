"""What every source needs: fields of official files, taken with a check that names file, record and field."""

from __future__ import annotations

import re
from typing import Any

from vlkit.errors import UserError

_WHOLE_NUMBER = re.compile(r"\s*([0-9]{1,18})(?:\.0*)?\s*")


def take(value: Any, field: str, kind: type | tuple[type, ...], where: str) -> Any:
    """``value[field]`` if it is there and of type ``kind``; else a :class:`UserError` that names place and field."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a JSON object; is this the official file?")
    if not isinstance(value.get(field), kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        state = "missing" if field not in value else f"not of type {' or '.join(k.__name__ for k in kinds)}"
        raise UserError(f'{where}: field "{field}" is {state}; is this the official file?')
    return value[field]


def take_id(value: Any, field: str, where: str) -> int:
    """``value[field]`` as a whole number; one written as a text (``"123"``) or with a point (``123.0``) is taken too.

    Other tools write ids so: spreadsheets as texts, tables with gaps as floating-point numbers.

    Raises:
        UserError: there is none; place and field are named.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a JSON object; is this the official file?")
    found = value.get(field)
    number = whole_number(found)
    if number is None:
        state = "missing" if field not in value else f"{str(found)[:40]!r}, no whole number"
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
