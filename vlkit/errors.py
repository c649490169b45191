"""The one exception that means "the user's input is wrong"."""

from __future__ import annotations

import os
import re


class UserError(Exception):
    """Wrong input: a flag, a file, a record.

    The message is one line that says what is wrong, where (file, line, field) and how to fix it. Scripts print it
    on stderr and exit with 2, without a traceback (:func:`vlkit.cli.config.run`).
    """


class NothingThereError(UserError):
    """A folder exists and holds none of the files that are looked for; an index of it is then empty."""


def some(names: list[str], limit: int = 5) -> str:
    """Join the first ``limit`` names for a message and count the rest: ``a, b and 7 more``."""
    shown = ", ".join(str(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def printable(path: str | os.PathLike[str]) -> str:
    """A path or text that every output takes: bytes of a file name that are not UTF-8 become ``\\xe9``.

    Python holds such a byte as half of a character, which no UTF-8 file, terminal or web page accepts.
    """
    return re.sub("[\ud800-\udfff]", _escaped, os.fspath(path))


def _escaped(half: re.Match[str]) -> str:
    code = ord(half[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
