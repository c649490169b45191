"""Reading text, writing files whole, caches and fingerprints."""

from __future__ import annotations

import codecs
import contextlib
import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlkit.errors import UserError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success flush it to disk and rename it into place.

    Readers see the old file or the new one, never a partial file, even if the process is killed. A missing parent
    folder is created. If the body raises, the temporary file is removed and ``path`` is untouched.
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

    Characters that UTF-8 cannot encode, such as the bytes of a non-UTF-8 file name, are written as ``\\udce9``; JSON
    and YAML read them back unchanged.
    """
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON to ``path`` in one step; NaN and infinity are errors."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(path: str | Path, fix: str = "is this the right file?") -> str:
    """Read a text file from the user; used for all CSV, TSV, TXT, JSON and JSONL files.

    Accepts UTF-8 with or without a byte order mark, and UTF-16 with one, which some spreadsheets and shells write. Line
    endings are kept.

    Args:
        path: the file.
        fix: advice that ends the error message if the file is missing or unreadable.

    Raises:
        UserError: the file is missing, is a folder, cannot be opened, or is not UTF-8 or UTF-16; the message names it.
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


def text_lines(text: str) -> list[str]:
    """Lines of a text without their ends; an end after the last line begins no other line.

    A line ends with a line feed (and a carriage return before it), in a text without any with a carriage return. Unlike
    for ``str.splitlines``, other characters such as U+2028 and U+0085 end no line: captions and JSON strings hold them.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")] if "\n" in text else text.split("\r")
    return lines if lines[-1] else lines[:-1]


def decode_text(content: bytes, where: str | Path) -> str:
    """Decode ``content`` without its byte order mark; see :func:`read_text`.

    Raises:
        UserError: ``content`` is neither UTF-8 nor UTF-16 with a byte order mark; the message begins with ``where``.
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
    except (ValueError, RecursionError):  # numbers with thousands of digits, or thousands of nested brackets
        reason = "not readable JSON (a number is too long, or the nesting too deep)"
    raise UserError(f"{path}: {reason}; is the file complete?")


def cache_folder() -> Path:
    """Folder for files that vlkit can recreate: $VLKIT_CACHE, else $XDG_CACHE_HOME/vlkit, else ~/.cache/vlkit.

    If nothing can be written below the home folder (containers, read-only homes), a folder of the user below the
    system's temporary folder takes the place of ~/.cache/vlkit, and a warning says so once.

    Raises:
        UserError: no such folder is known, for example for a container user without a home folder.
    """
    if os.environ.get("VLKIT_CACHE"):
        return Path(os.environ["VLKIT_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "vlkit"
    try:
        return _writable_cache(Path.home() / ".cache" / "vlkit")
    except RuntimeError:
        raise UserError("this user has no home folder; set VLKIT_CACHE to a folder with free space") from None


@functools.lru_cache(maxsize=8)
def _writable_cache(folder: Path) -> Path:
    """``folder``, or the user's own folder below the temporary one if it cannot be written.

    Raises:
        UserError: that folder belongs to somebody else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        reason = error.strerror or error
    user = os.getuid() if hasattr(os, "getuid") else "user"
    instead = Path(tempfile.gettempdir()) / f"vlkit-cache-{user}"
    with contextlib.suppress(FileExistsError):
        instead.mkdir(mode=0o700)
    if instead.is_symlink() or (hasattr(os, "getuid") and instead.stat().st_uid != user):
        raise UserError(f"{folder}: cannot write ({reason}); set VLKIT_CACHE to a folder with free space")
    log.warning(
        "%s: cannot write (%s); the cache is in %s; VLKIT_CACHE chooses another folder", folder, reason, instead
    )
    return instead


def sha256_of(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
