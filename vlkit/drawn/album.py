"""A small album of the demo world for the web demo: test images, clips and films, drawn at a size for display."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from vlkit.drawn.folder import whole_folder
from vlkit.drawn.make import VERSION
from vlkit.drawn.moments import example_films
from vlkit.drawn.refcoco import referred
from vlkit.drawn.videos import FOLDER, draw_videos
from vlkit.drawn.vqa import ask
from vlkit.drawn.world import Box, Image, draw_world, split_folder
from vlkit.errors import UserError
from vlkit.files import cache_folder, read_json, write_json

IMAGES, CLIPS, FILMS = 80, 16, 3
IMAGE_SIDE, CLIP_SIDE = 256, 192
"""Pixels. Models resize inputs to their own size; their training datasets have 96."""
TRAINED_SIDE = 96
_FILE = "album.json"


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


def demo_album() -> Album:
    """The album, in the cache folder; drawn on first use (a few seconds).

    Its scenes are the first ones of the test split, so no model was trained on them.

    Raises:
        UserError: the cache cannot be written.
    """
    home = _home()
    try:
        with whole_folder(home, (home / _FILE).exists) as folder:
            if folder is not None:
                _draw(folder)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{home}: cannot write ({reason}); set VLKIT_CACHE to a folder with free space") from error
    known = read_json(home / _FILE)
    return Album(
        home / "pictures",
        home / FOLDER,
        home / "films",
        [AlbumImage(**entry) for entry in known["pictures"]],
        [AlbumClip(**entry) for entry in known["clips"]],
        [AlbumFilm(**entry) for entry in known["films"]],
    )


@contextmanager
def drawing_ahead() -> Iterator[None]:
    """Draw the album in a separate process meanwhile, if there is none yet, so that :func:`demo_album` finds it.

    Even if that process fails, ``demo_album`` waits for it and then draws what is missing.
    """
    if (_home() / _FILE).exists():
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


def _draw(folder: Path) -> None:
    images = _draw_images(folder, "pictures", IMAGES)
    videos = draw_videos(0, {"train": 0, "test": CLIPS}, folder, CLIP_SIDE)
    clips = [
        asdict(AlbumClip(Path(video.file_name).name, video.clip.seconds, list(video.sentences))) for video in videos
    ]
    films = [
        asdict(AlbumFilm(name, [(query.text, [(s, e) for s, e in query.windows]) for query in film.queries]))
        for name, film in example_films(folder / "films", FILMS, 0, CLIP_SIDE)
    ]
    write_json(folder / _FILE, json.loads(json.dumps({"pictures": images, "clips": clips, "films": films})))


def _draw_images(folder: Path, name: str, count: int) -> list[dict[str, Any]]:
    """Draw the first ``count`` test images into ``folder / name`` and describe them."""
    world = draw_world(0, {"test": count}, folder, IMAGE_SIDE)
    (folder / split_folder("test")).rename(folder / name)
    for number, image in enumerate(world.images["test"]):
        (folder / name / image.file_name).rename(folder / name / _name(number))
    return [asdict(_describe(number, p, world.seed)) for number, p in enumerate(world.images["test"])]


def _name(number: int) -> str:
    return f"image{number + 1:02d}.jpg"


def _describe(number: int, image: Image, seed: int) -> AlbumImage:
    # The limit for hardly visible things was chosen for the size of the datasets.
    scale = (TRAINED_SIDE / IMAGE_SIDE) ** 2
    small = replace(image, areas=tuple(area * scale for area in image.areas))
    questions = [
        (question["question"], annotation["multiple_choice_answer"]) for question, annotation in ask(small, seed)
    ]
    phrases = [
        (phrase.words, cast(Box, image.boxes[thing]))
        for thing, called in referred(small, seed)
        for phrase in called[:1]
    ]
    return AlbumImage(_name(number), list(image.captions), questions, phrases)


if __name__ == "__main__":
    demo_album()
