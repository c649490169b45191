"""The example that a tab opens with is answered already: computed once, then stored for later starts."""

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


def worked(studio: Studio, tab: str, function: Callable[..., Any], *values: Any) -> Any:
    """The answer that a tab opens with; it becomes the first value of the tab's outputs.

    It is stored in the cache folder, one file per tab, and computed anew once the adapters, the example or the program
    are others.

    Args:
        studio: whose models answer.
        tab: name of the tab.
        function: what answers, in JSON values.
        values: its arguments; a path is opened as an image.

    Returns:
        Its answer; None if it fails: the tab then opens empty, and the log says why.
    """
    try:
        key = key_of(studio, values)
        answer = _stored(tab, key)
        if answer is None:
            answer = function(*(open_image(value) if isinstance(value, Path) else value for value in values))
            write_json(_file(tab), {"key": key, "answer": answer})
        return answer
    except Exception:
        log.warning("the example of a tab has no answer", exc_info=True)
        return None


def key_of(studio: Studio, values: tuple[Any, ...]) -> str:
    """Hash of all that an answer depends on: adapters with their bases, the example, and the program."""
    given = [sha256_of(value) if isinstance(value, Path) else value for value in values]
    parts = [studio.models.fingerprints, studio.about["device"], given, _program()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache  # the same for all tabs, and hundreds of files
def _program() -> list[tuple[str, int, int]]:
    """Name, size and time of each source file."""
    folders = Path(__file__).parent, Path(vlkit.__file__).parent
    files = [(file, file.stat()) for folder in folders for file in sorted(folder.rglob("*.py"))]
    return [(str(file), about.st_size, about.st_mtime_ns) for file, about in files]


def _stored(tab: str, key: str) -> Any:
    try:
        known = read_json(_file(tab))
        return known["answer"] if known["key"] == key else None
    except (UserError, KeyError, TypeError):
        return None  # there is none yet, or something else


def _file(tab: str) -> Path:
    return cache_folder().absolute() / "demo" / "examples" / f"{tab}.json"
