"""A small album of the demo world for the web demo: test images, clips and films, drawn at a size for display."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vlkit.drawn import VERSION
from vlkit.drawn.folder import whole_folder
from vlkit.errors import UserError
from vlkit.files import cache_folder, read_json

if TYPE_CHECKING:
    from vlkit.drawn.world import Box

FILE, IMAGES, CLIPS, FILMS = "album.json", "pictures", "videos", "films"
"""Files and folders of an album."""


@dataclass(frozen=True)
class AlbumImage:
    """An image and its annotations.

    Attributes:
        name: file in :attr:`Album.images`.
        captions: sentences that describe it.
        questions: (question, true answer).
        phrases: (phrase, box of the one thing it describes, xyxy in pixels).
    """

    name: str
    captions: list[str]
    questions: list[tuple[str, str]]
    phrases: list[tuple[str, Box]]


@dataclass(frozen=True)
class AlbumClip:
    """A clip: file in :attr:`Album.clips`, seconds, and sentences that describe it, plain to detailed."""

    name: str
    seconds: float
    captions: list[str]


@dataclass(frozen=True)
class AlbumFilm:
    """A film: file in :attr:`Album.films`, and sentences, each with the (start, end) in seconds where it is true."""

    name: str
    queries: list[tuple[str, list[tuple[int, int]]]]


@dataclass(frozen=True)
class Album:
    """The album on disk: folders of images, clips and films, with their annotations."""

    images: Path
    clips: Path
    films: Path
    about_images: list[AlbumImage] = field(default_factory=list)
    about_clips: list[AlbumClip] = field(default_factory=list)
    about_films: list[AlbumFilm] = field(default_factory=list)

    def longest_moments(self) -> list[tuple[str, str, list[tuple[int, int]]]]:
        """(file, sentence, where it is true) of each film: its longest moment; the longest of all films comes first."""
        asked = [(film.name, *max(film.queries, key=lambda query: _seconds(query[1]))) for film in self.about_films]
        return sorted(asked, key=lambda row: -_seconds(row[2]))


def _seconds(windows: list[tuple[int, int]]) -> int:
    """Length of all windows together."""
    return sum(end - start for start, end in windows)


def demo_album() -> Album:
    """The album, in the cache folder; drawn on first use (a few seconds).

    Its scenes are the first ones of the test split, so no model was trained on them.

    Raises:
        UserError: the cache cannot be written.
    """
    home = _home()
    try:
        with whole_folder(home, (home / FILE).exists) as folder:
            if folder is not None:
                from vlkit.drawn.album_drawing import draw  # seconds that an album on disk does not need

                draw(folder)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{home}: cannot write ({reason}); set VLKIT_CACHE to a folder with free space") from error
    known = read_json(home / FILE)
    return Album(
        home / IMAGES,
        home / CLIPS,
        home / FILMS,
        [AlbumImage(**entry) for entry in known["pictures"]],
        [AlbumClip(**entry) for entry in known["clips"]],
        [AlbumFilm(**entry) for entry in known["films"]],
    )


@contextmanager
def drawing_ahead() -> Iterator[None]:
    """Draw the album in a separate process meanwhile, if there is none yet, so that :func:`demo_album` finds it.

    Even if that process fails, ``demo_album`` waits for it and then draws what is missing.
    """
    if (_home() / FILE).exists():
        yield
        return
    process = subprocess.Popen([sys.executable, "-m", __name__], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _home() -> Path:
    return cache_folder().absolute() / "demo" / f"v{VERSION}-album3"


if __name__ == "__main__":
    if hasattr(os, "nice"):  # not on Windows
        os.nice(10)  # the imports of the process that waits for it are the longer part of the start
    demo_album()
