"""The example that a tab opens with is answered already: the answers of the shipped adapters come with the package.

    PYTHONPATH=.:demos python -m tabs.examples      # answer them anew and store them there

A test compares them with what the program answers.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import vlkit
from tabs.common import Studio
from vlkit.data.images import open_image
from vlkit.errors import UserError
from vlkit.files import cache_folder, read_json, sha256_of, write_json

log = logging.getLogger(__name__)

SHIPPED = Path(vlkit.__file__).parent / "assets" / "demo_answers.json"
_anew: list[dict[str, Any]] = []
"""Where :func:`answers` collects while it runs; empty otherwise."""


def worked(
    studio: Studio, tab: str, function: Callable[..., Any], *values: Any, read: Callable[[Path], Any] = open_image
) -> Any:
    """The answer that a tab opens with; it becomes the first value of the tab's outputs.

    For the shipped adapters it comes with the package. Others' is stored in the cache folder, one file per tab, and
    computed anew once the adapters, the example or the program are others.

    Args:
        studio: whose models answer.
        tab: name of the tab.
        function: what answers, in JSON values.
        values: its arguments.
        read: what opens those that are paths.

    Returns:
        Its answer; None if it fails: the tab then opens empty, and the log says why.
    """
    try:
        key = key_of(studio, values)
        answer = None if _anew else _stored(tab, key)
        if answer is None:
            answer = function(*(read(value) if isinstance(value, Path) else value for value in values))
            if _anew:
                _anew[-1][tab] = {"key": key, "answer": answer}
            else:
                write_json(_file(tab), {"key": _with_program(key), "answer": answer})
        return answer
    except Exception:
        log.warning("the example of a tab has no answer", exc_info=True)
        return None


def key_of(studio: Studio, values: tuple[Any, ...]) -> str:
    """Hash of the adapters with their bases, their device, and the example."""
    given = [_identity(value, studio.album.images.parent) if isinstance(value, Path) else value for value in values]
    return _hash([studio.models.fingerprints, studio.about["device"], given])


def _identity(file: Path, album: Path) -> str:
    """The same on every machine for a file of the album, whichever release of a codec wrote it."""
    return file.relative_to(album.parent).as_posix() if file.is_relative_to(album) else sha256_of(file)


def _with_program(key: str) -> str:
    """Hash of all that an answer in the cache folder depends on."""
    return _hash([key, _program()])


def _hash(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache  # the same for all tabs, and hundreds of files
def _program() -> list[tuple[str, int, int]]:
    """Name, size and time of each source file."""
    folders = Path(__file__).parent, Path(vlkit.__file__).parent
    files = [(file, file.stat()) for folder in folders for file in sorted(folder.rglob("*.py"))]
    return [(str(file), about.st_size, about.st_mtime_ns) for file, about in files]


def _stored(tab: str, key: str) -> Any:
    """The answer with this key, shipped or in the cache folder."""
    shipped = _shipped().get(tab, {})
    if shipped.get("key") == key:
        return shipped["answer"]
    try:
        known = read_json(_file(tab))
        return known["answer"] if known["key"] == _with_program(key) else None
    except (UserError, KeyError, TypeError):
        return None  # there is none yet, or something else


@cache
def _shipped() -> dict[str, Any]:
    return read_json(SHIPPED)


def _file(tab: str) -> Path:
    return stored_examples() / f"{tab}.json"


def stored_examples() -> Path:
    """The folder of answers that later starts use again."""
    return cache_folder().absolute() / "demo" / "examples"


def answers() -> dict[str, Any]:
    """What :data:`SHIPPED` has to hold: tab -> {"key", "answer"}, from the shipped adapters."""
    from app import Config, build, folder_for_files

    _anew.append({})
    try:
        with folder_for_files():
            build(Config(device="cpu"))
    finally:
        found = _anew.pop()
    return found


if __name__ == "__main__":
    from tabs import examples  # not __main__, which the tabs do not import

    write_json(SHIPPED, examples.answers())
