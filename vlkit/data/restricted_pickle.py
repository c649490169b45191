"""Read the pickle files in which some datasets are published, without running code from them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from vlkit.errors import UserError

# A damaged pickle may raise any of these, depending on its first wrong opcode.
_DAMAGED = (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
_DAMAGED += (MemoryError, RecursionError)


class _Forbidden(Exception):
    """The pickle contains something other than plain values."""


class _PlainUnpickler(pickle.Unpickler):
    """Builds dicts, lists, tuples, texts and numbers; every import, and so every call, is refused.

    Values with opcodes of their own need no import. Everything else (classes, functions, the extension registry) goes
    through ``find_class``, and objects stored outside the file go through ``persistent_load``.
    """

    def find_class(self, module: str, name: str) -> Any:
        raise _Forbidden(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _Forbidden(f"persistent object {str(pid)[:40]!r}")


def read_pickle(path: str | Path) -> Any:
    """Load a pickle of plain containers, texts and numbers; nothing in it is executed.

    Python 2 strings are decoded as UTF-8; invalid bytes become U+FFFD.

    Raises:
        UserError: the file is missing, is not a pickle, or contains anything else; the message names the file and the
            forbidden global.
    """
    try:
        with open(path, "rb") as file:
            return _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
    except _Forbidden as error:
        raise UserError(
            f"{path}: asks for {error}, which a dataset does not need and which could run code; nothing was run; "
            "get the file from its official source"
        ) from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read ({error.strerror or error}); give the pickle file") from None
    except _DAMAGED as error:
        raise UserError(f"{path}: not a readable pickle ({error}); is the download complete?") from None
