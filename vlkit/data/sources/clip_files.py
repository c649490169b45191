"""Possible paths of a clip's file: copies of a dataset differ in file endings and folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from vlkit.data.scan import VIDEO_SUFFIXES


def other_clips(folders: Sequence[str]) -> Callable[[str], Iterator[str]]:
    """For a stated path ``<stem>.mp4``: the same stem with every ending, here and in ``folders`` (for ``elsewhere``).

    The stem is everything before the last dot, so it may contain dots.
    """

    def places(path: str) -> Iterator[str]:
        stem = path.rpartition(".")[0]
        for folder in ("", *(f"{folder}/" for folder in folders)):
            for suffix in VIDEO_SUFFIXES:
                yield f"{folder}{stem}{suffix}"
                yield f"{folder}{stem}{suffix.upper()}"

    return places
