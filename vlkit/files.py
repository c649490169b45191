"""Reading text, writing files whole, caches and fingerprints."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlkit.errors import UserError


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it into place.

    A reader, or a process killed at any moment, sees the old file or the new one, never a part. The parent folder is
    made if missing. If the body raises, the temporary file is removed and ``path`` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # The rename itself must survive a power cut, so the folder entry is flushed too.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` in one step (:func:`whole_file`).

    What UTF-8 cannot hold, such as the bytes of a file name that is not UTF-8, is written as ``\\udce9``. JSON and YAML
    read that back as the same name.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON to ``path`` in one step; NaN and infinity are errors."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(path: str | Path, fix: str = "is this the right file?") -> str:
    """The text of a file that a user gave: the one way to read CSV, TSV, TXT, JSON and JSONL.

    UTF-8 with or without a byte order mark; UTF-16 (what some spreadsheets and shells write) where a byte order mark
    says so. Line ends stay as they are.

    Args:
        path: the file.
        fix: how to fix it, the end of the message where there is no such file or it cannot be read.

    Raises:
        UserError: the file is missing, a folder, cannot be opened, or is no such text; the message names it.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {fix}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a file; {fix}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise UserError(f"{path}: cannot read ({getattr(error, 'strerror', None) or error}); {fix}") from None
    return decode_text(content, path)


def decode_text(content: bytes, where: str | Path) -> str:
    """The text of ``content`` without its byte order mark; see :func:`read_text`.

    Raises:
        UserError: it is neither UTF-8 nor UTF-16 with a byte order mark; the message begins with ``where``.
    """
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None


def read_json(path: str | Path, fix: str = "is this the right file?") -> Any:
    """Parse a JSON file, read as :func:`read_text` does.

    Raises:
        UserError: the file cannot be read, or is not JSON; the message names the file and the line.
    """
    text = read_text(path, fix)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}: not valid JSON ({error.msg})"
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets in thousands of brackets
        reason = "not JSON that can be read (a number too long, or nested too deeply)"
    raise UserError(f"{path}: {reason}; is the file complete?")


def cache_folder() -> Path:
    """Where vlkit keeps what it can make again: $VLKIT_CACHE, else $XDG_CACHE_HOME/vlkit, else ~/.cache/vlkit.

    Raises:
        UserError: none of them is known, as for a user id without an entry in a container.
    """
    if os.environ.get("VLKIT_CACHE"):
        return Path(os.environ["VLKIT_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "vlkit"
    try:
        return Path.home() / ".cache" / "vlkit"
    except RuntimeError:
        raise UserError("this user has no home folder; set VLKIT_CACHE to a folder with free space") from None


def sha256_of(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
