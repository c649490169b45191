"""The one exception that means "the user's input is wrong"."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

X = TypeVar("X")


class UserError(Exception):
    """Wrong input: a flag, a file, a record.

    The message is one line that says what is wrong, where (file, line, field) and how to fix it. Scripts print it
    on stderr and exit with 2, without a traceback (:func:`vlkit.cli.config.run`).
    """


class NothingThereError(UserError):
    """A folder exists but contains none of the files searched for; its index is then empty."""


@contextlib.contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Import packages of an optional extra inside this block.

    Args:
        extra: name of the extra of vlkit that brings the packages.
        what: what asks for them, such as a flag and its value.

    Raises:
        UserError: a package is missing or too old; names it and the command that installs it.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "a package").split(".")[0].replace("_", "-")
        reason = " ".join(str(error).split())
        raise UserError(
            f"{what}: {package} is not installed or too old ({reason}); pip install 'vlkit[{extra}]'"
        ) from None


def listed(values: Iterable[X], what: str) -> list[X]:
    """The values of a list, a generator or another collection.

    Args:
        values: as the caller gave them.
        what: what they are, in the plural, for the message.

    Raises:
        UserError: one text, path or image in place of several: the letters of a text would be taken for them.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise UserError(f"{what}: one {type(values).__name__} in place of a list of them; write [value]")
    return list(values)


def some(names: Sequence[object], limit: int = 5) -> str:
    """Join the first ``limit`` names for a message and count the rest: ``a, b and 7 more``."""
    shown = ", ".join(str(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
