"""Images and videos of a folder as items of a search index. :mod:`vlkit.data.scan` selects the files."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlkit.data.images import MediaError
from vlkit.data.scan import Scan
from vlkit.data.video.clip_frames import duration_of, windows
from vlkit.errors import UserError
from vlkit.files import sha256_of
from vlkit.index.files import Item


def image_items(found: Scan) -> list[Item]:
    """The images of a folder, each named by its path in it and stamped with size and modification time."""
    items = []
    for name, path in zip(found.names, found.paths, strict=True):
        try:
            items.append(Item(name, stamp_of(path)))
        except FileNotFoundError:  # removed since the folder was searched
            continue
        except OSError:  # in a folder that may not be entered: reading it says so
            items.append(Item(name, ""))
    return items


def media_digest(path: Path) -> str:
    """Hash of a file's content.

    Raises:
        MediaError: it cannot be read.
    """
    try:
        return sha256_of(path)
    except FileNotFoundError:
        raise MediaError(path, "missing") from None
    except OSError as error:
        raise MediaError.unreadable(path, error) from None


def stamp_of(path: Path) -> str:
    """Size and modification time of a file."""
    state = os.stat(path)
    return f"{state.st_size}-{state.st_mtime_ns}"


@dataclass(frozen=True)
class Window:
    """What an item represents: a video of the folder, and seconds from start to end."""

    video: str
    start: float
    end: float

    @classmethod
    def of(cls, item: Item) -> Window:
        """The window described by an item's metadata.

        Raises:
            UserError: they describe none; the index is damaged or was not made of videos.
        """
        found: list[Any] = [item.metadata.get(key) for key in ("video", "start", "end")]
        times_fit = all(isinstance(time, int | float) and math.isfinite(time) for time in found[1:])
        if not isinstance(found[0], str) or not times_fit:
            raise UserError(f"item {item.id!r} of the index is not a window of a video; make the index again")
        return cls(*found)


class VideoWindows:
    """Cuts the videos of a folder into windows, each an item with its times; unchanged videos are not opened.

    An item's ``metadata`` holds ``video`` (path in the folder), ``start`` and ``end`` (seconds), and ``parts``, the
    number of windows of its video. Stamp and digest include the window settings, so other settings make every item
    changed.

    Args:
        folder: the videos.
        window: seconds; None = each video is one item.
        stride: seconds between the starts of two windows; None = ``window``.
        known: items that the index holds.
    """

    def __init__(
        self, folder: Path, window: float | None = None, stride: float | None = None, known: Iterable[Item] = ()
    ) -> None:
        self.folder, self.window, self.stride = folder, window, stride
        self._cut = "whole" if window is None else f"{window:g}/{window if stride is None else stride:g}"
        self._known: dict[str, list[Item]] = defaultdict(list)
        for item in known:
            self._known[Window.of(item).video].append(item)
        self._sha256 = lru_cache(maxsize=256)(media_digest)

    def items_of(self, path: Path) -> list[Item]:
        """The windows of a video.

        Raises:
            MediaError: the file cannot be used.
        """
        try:
            stamp = f"{stamp_of(path)}-{self._cut}"
        except OSError as error:
            raise MediaError.unreadable(path, error) from None
        name = path.relative_to(self.folder).as_posix()
        known = self._known.get(name, [])
        if known and all(item.stamp == stamp and item.metadata.get("parts") == len(known) for item in known):
            return known
        duration = duration_of(path)
        times = [(0.0, duration)] if self.window is None else windows(duration, self.window, self.stride)
        rounded = [(round(start, 3), round(end, 3)) for start, end in times]
        return [
            Item(
                name if self.window is None else f"{name}#t={start:g},{end:g}",
                stamp,
                metadata={"video": name, "start": start, "end": end, "parts": len(times)},
            )
            for start, end in rounded
        ]

    def digest(self, item: Item) -> str:
        """Hash of the content of an item's file, with the window settings."""
        return f"{self._sha256(self.folder / item.metadata['video'])}-{self._cut}"

    def part(self, item: Item) -> tuple[Path, float | None, float | None]:
        """File, start and end in seconds of what an item represents; None and None: the whole file."""
        path = self.folder / item.metadata["video"]
        # A video that is one window is read to its end, regardless of how its length was rounded.
        if item.metadata["parts"] == 1:
            return path, None, None
        return path, item.metadata["start"], item.metadata["end"]
