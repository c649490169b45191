"""Terminal output of scripts: users' text shown verbatim, on streams of any encoding. The only module that imports
rich.

Rich parses strings as markup (``[bold]``, ``:smile:``) unless this is turned off in several places. This module turns
it off once: :class:`Console`, :class:`Table`, :func:`track` and :class:`Progress` of this module show file names,
    queries
and answers verbatim. A test checks that no other module imports rich.
"""

from __future__ import annotations

import codecs
import contextlib
import re
import sys
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from typing import Any, TypeVar, cast

import rich.console
import rich.progress
import rich.table
from rich.box import SIMPLE
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.text import Text

__all__ = [
    "SIMPLE",
    "BarColumn",
    "Console",
    "MofNCompleteColumn",
    "Progress",
    "Table",
    "TextColumn",
    "TimeRemainingColumn",
    "one_line",
    "safe_streams",
    "track",
    "visible",
]

X = TypeVar("X")

PLAIN = "vlkit.plain"
"""Name of the codec error handler that replaces characters missing in an encoding by ones that it has."""
UNFOLDED = 100_000
"""Width in columns of a stream that is not a terminal: output to a file or pipe is never wrapped."""

_STAND_INS = {"…": "...", "→": "->"}
_STAND_INS |= {"–": "-", "—": "-", "−": "-", "·": "-", "×": "x", "±": "+-", "≥": ">=", "≤": "<="}  # noqa: RUF001
_STAND_INS |= {"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "№": "No."}  # noqa: RUF001
# Control characters would move the cursor or change its colour; newline and tab are wanted. Surrogates stand for bytes
# of file names that are not UTF-8, or come from broken JSON.
_NOT_SHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def visible(text: object, encoding: str = "utf-8") -> str:
    """Printable ``text``: nothing is dropped; characters missing in ``encoding`` are replaced.

    Control characters become ``\\x1b``, bytes of a file name that is not UTF-8 ``\\xe9``; in ASCII ``…`` becomes
    ``...`` and ``é`` ``\\xe9``.
    """
    shown = _NOT_SHOWN.sub(lambda match: _stand_in(match[0]), str(text))
    return shown.encode(encoding, PLAIN).decode(encoding)


def one_line(text: object) -> str:
    """``text`` on one line; spaces within a line stay, as they may belong to a file name."""
    return visible(re.sub(r"\s*\n\s*", " ", str(text).strip()))


def safe_streams() -> None:
    """Let stdout and stderr write any text in any encoding (``LANG=C``, ``PYTHONIOENCODING=ascii``)."""
    for stream in (sys.stdout, sys.stderr):
        # A replacement stream such as io.StringIO has no encoding that could fail.
        with contextlib.suppress(AttributeError, ValueError):
            cast(TextIOWrapper, stream).reconfigure(errors=PLAIN)


def _stand_in(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    escaped = f"\\x{code:02x}" if code < 0x100 else character.encode("ascii", "backslashreplace").decode()
    return _STAND_INS.get(character, escaped)


def _write_plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_stand_in, error.object[error.start : error.end])), error.end


codecs.register_error(PLAIN, _write_plainly)


class Console(rich.console.Console):
    """A console that shows text verbatim: no markup, no emoji codes, no colours for numbers.

    On a terminal long table cells are wrapped and never truncated. Elsewhere nothing is wrapped.
    """

    def __init__(self, *, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **options)
        if not self.is_terminal:
            self.width = UNFOLDED

    def print(self, *objects: Any, **options: Any) -> None:
        """As in rich, but the terminal wraps lines of text, so that paths can be copied."""
        if all(isinstance(item, str) for item in objects):
            options.setdefault("soft_wrap", True)
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """All strings that rich shows pass through here, so widths match the written text."""
        options |= {"markup": False, "emoji": False}
        return super().render_str(visible(text, self.encoding), **options)

    def status(self, status: Any, **options: Any) -> Any:
        """As in rich, without markup in the text of the spinner."""
        return super().status(Text(visible(status, self.encoding)) if isinstance(status, str) else status, **options)


class Table(rich.table.Table):
    """A table of text; the title is on its own line above and is not wrapped to the table's width."""

    def __init__(self, *headers: str, title: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._heading = title
        for header in headers:
            self.add_column(header)

    def add_column(self, header: str = "", **options: Any) -> None:
        """As in rich, but a cell too wide for the terminal is wrapped instead of truncated."""
        super().add_column(header, **{"overflow": "fold", **options})

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        if self._heading is not None:
            yield Text(visible(self._heading, console.encoding), style="table.title", overflow="fold")
        yield from super().__rich_console__(console, options)


class TextColumn(rich.progress.TextColumn):
    """Verbatim text beside a progress bar."""

    def __init__(self, text_format: str, **options: Any) -> None:
        super().__init__(text_format, **{"markup": False, **options})


class Progress(rich.progress.Progress):
    """Progress bars whose descriptions are shown verbatim."""

    @classmethod
    def get_default_columns(cls) -> tuple[rich.progress.ProgressColumn, ...]:
        """Description, bar, share and time left."""
        described = TextColumn("{task.description}", style="progress.description")
        return described, BarColumn(), rich.progress.TaskProgressColumn(), TimeRemainingColumn()


def track(
    sequence: Iterable[X],
    description: str,
    total: float | None = None,
    *,
    console: Console | None = None,
    transient: bool = True,
    disable: bool = False,
) -> Iterator[X]:
    """Yield the items of ``sequence`` and show progress on a terminal.

    Args:
        sequence: items to process.
        description: text beside the bar.
        total: number of items, if ``sequence`` has no length.
        console: console to use instead of stderr.
        transient: remove the bar at the end.
        disable: show nothing.
    """
    console = console or Console(stderr=True)
    # A bar makes no sense in a file.
    with Progress(console=console, transient=transient, disable=disable or not console.is_terminal) as bar:
        yield from bar.track(sequence, total, description=visible(description, console.encoding))
