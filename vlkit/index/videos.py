"""Videos of a folder as items of a search index: one item a video, or one a window of a long one."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from vlkit.data.images import MediaError
from vlkit.data.video.clip_frames import Clip, duration_of, windows
from vlkit.errors import UserError
from vlkit.files import sha256_of
from vlkit.index import Item

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".ogv", ".flv", ".wmv", ".3gp"}
)


def video_files(folder: Path) -> list[Path]:
    """Every video file below ``folder``, sorted.

    Raises:
        UserError: no such folder, or no video in it.
    """
    if not folder.is_dir():
        raise UserError(f"--videos {folder}: no such folder")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
    if not files:
        raise UserError(f"--videos {folder}: no videos there ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return files


class VideoWindows:
    """Cuts the videos of a folder into windows, each an item with its times; unchanged videos are not opened.

    An item's ``metadata`` holds ``video`` (path in the folder), ``start`` and ``end`` (seconds), and ``parts``, the
    number of windows of its video. Stamp and digest name the way of cutting too: another one makes every item changed.

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
            self._known[item.metadata["video"]].append(item)
        self._sha256 = lru_cache(maxsize=256)(sha256_of)

    def items_of(self, path: Path) -> list[Item]:
        """The windows of a video.

        Raises:
            MediaError: the file is no use.
        """
        try:
            state = os.stat(path)
        except OSError as error:
            raise MediaError(path, f"cannot be read ({error.strerror or error})") from None
        name = path.relative_to(self.folder).as_posix()
        stamp = f"{state.st_size}-{state.st_mtime_ns}-{self._cut}"
        known = self._known.get(name, [])
        if known and all(item.stamp == stamp and item.metadata["parts"] == len(known) for item in known):
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
        """Hash of the content of an item's file, with the way of cutting."""
        return f"{self._sha256(self.folder / item.metadata['video'])}-{self._cut}"

    def clip(self, item: Item) -> Clip:
        """What of which file an item stands for."""
        path = self.folder / item.metadata["video"]
        # A video that is one window is read to its very end, whatever rounding has done to its length.
        if item.metadata["parts"] == 1:
            return Clip(path)
        return Clip(path, item.metadata["start"], item.metadata["end"])
