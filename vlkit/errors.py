"""The one exception that means "the user's input is wrong"."""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Wrong input: a flag, a file, a record.

    The message is one line that says what is wrong, where (file, line, field) and how to fix it. Scripts print it
    on stderr and exit with 2, without a traceback (:func:`vlkit.cli.config.run`).
    """


class NothingThereError(UserError):
    """A folder exists but contains none of the files searched for; its index is then empty."""


def some(names: Sequence[object], limit: int = 5) -> str:
    """Join the first ``limit`` names for a message and count the rest: ``a, b and 7 more``."""
    shown = ", ".join(str(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
