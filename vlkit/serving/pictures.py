"""Folders of pictures that several models search: indexed in the background, kept between starts."""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import numpy as np
from PIL import Image

from vlkit.data.images import MediaError, open_image
from vlkit.errors import UserError
from vlkit.files import cache_folder
from vlkit.index import IndexWriter, VectorIndex
from vlkit.index.pictures import find_pictures, update_pictures
from vlkit.pipelines.retrieval import RetrievalPipeline

log = logging.getLogger(__name__)

THUMBNAIL = 512
"""Longer side of what is shown of a picture, in pixels."""
BATCH, SHOW_EVERY = 16, 256
"""Pictures embedded at once (a search that comes in between waits for one such batch), and between two looks at them
by searches."""


@dataclass(frozen=True)
class Found:
    """A search result: cosine similarity, name, and the picture's file or the picture itself."""

    score: float
    name: str
    source: Path | Image.Image

    def thumbnail(self) -> Image.Image:
        """The picture, at most :data:`THUMBNAIL` pixels a side.

        Raises:
            MediaError: the file is gone or damaged meanwhile.
        """
        if isinstance(self.source, Image.Image):
            return self.source
        return _thumbnail_of(self.source, self.source.stat().st_mtime_ns if self.source.exists() else 0)


@dataclass(frozen=True)
class AddedPictures:
    """Pictures that one visitor added: they live in memory and are found by nobody else.

    Attributes:
        names: what the visitor calls them.
        thumbnails: as many pictures.
        vectors: by model, float32 [n, E].
    """

    names: tuple[str, ...] = ()
    thumbnails: tuple[Image.Image, ...] = ()
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def plus(self, name: str, picture: Image.Image, models: Mapping[str, RetrievalPipeline]) -> AddedPictures:
        """These and one more, embedded by every model."""
        new = {model: pipeline.embed_images([picture]) for model, pipeline in models.items()}
        vectors = {model: np.concatenate([self.vectors.get(model, row[:0]), row]) for model, row in new.items()}
        return AddedPictures((*self.names, name), (*self.thumbnails, shrunk(picture)), vectors)


class PictureLibrary:
    """A folder of pictures indexed by one or more models. Any number of threads may search it, also meanwhile.

    Args:
        folder: searched with all its sub-folders.
        models: what embeds them, by name. Each has an index of its own in the cache folder.
    """

    def __init__(self, folder: Path, models: Mapping[str, RetrievalPipeline]) -> None:
        self.folder, self.models = folder, dict(models)
        self._indexes: dict[str, VectorIndex] = {}
        self._progress: dict[str, tuple[int, int]] = {}
        self._finished: set[str] = set()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.error: str | None = None
        self.left_out: list[str] = []

    def start(self) -> None:
        """Index in a thread of its own; :attr:`error` says what went wrong, :meth:`progress` how far it is."""
        self._thread = threading.Thread(target=self._update_quietly, name="index pictures", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current batch; what was embedded is kept for the next start."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def finished(self) -> bool:
        """Whether every model has seen the folder."""
        return self._finished == set(self.models)

    def progress(self) -> tuple[int, int]:
        """Pictures embedded, and to embed, over all models begun so far."""
        counts = list(self._progress.values())
        return sum(done for done, _ in counts), sum(total for _, total in counts)

    def count(self) -> int:
        """Pictures that can be found now."""
        return min((len(index) for index in self._indexes.values()), default=0)

    def update(self) -> None:
        """Bring the index of every model up to date, and return when that is done.

        Raises:
            UserError: no such folder, no pictures in it, or the cache cannot be written.
        """
        items = find_pictures(self.folder)
        for name, pipeline in self.models.items():
            home = self._home(pipeline)
            home.parent.mkdir(parents=True, exist_ok=True)
            # Two demos over one folder: the second waits and then finds nothing left to do.
            with (
                filelock.FileLock(f"{home}.lock"),
                IndexWriter.open(home, pipeline.dim, pipeline.identity) as writer,
            ):
                show = functools.partial(self._show, name, home, writer)
                update = update_pictures(
                    writer, self.folder, items, pipeline.embed_images, batch_size=BATCH, progress=show
                )
            self.left_out = [str(error) for error in update.bad]
            self._indexes[name] = VectorIndex.open(home, pipeline.identity)
            self._finished.add(name)
        for message in self.left_out:
            log.warning("left out: %s", message)

    def search(self, model: str, queries: np.ndarray, k: int, added: AddedPictures | None = None) -> list[list[Found]]:
        """The k nearest pictures of each query, best first; among those that are indexed so far.

        Args:
            model: whose index; its embeddings are the queries.
            queries: float32 [Q, E].
            k: at least 1.
            added: a visitor's own pictures, searched as well.

        Raises:
            UserError: nothing is indexed yet, or the folder could not be indexed.
        """
        index = self._indexes.get(model)
        if index is None and self.error:
            raise UserError(self.error)
        if index is None or not len(index):
            raise UserError("The pictures are still being indexed; try again in a moment.")
        rows = [
            [Found(hit.score, hit.item.id, self.folder / hit.item.id) for hit in hits]
            for hits in index.search(queries, k)
        ]
        if added is None or model not in added.vectors:
            return rows
        scores = queries @ added.vectors[model].T
        own = [
            [Found(float(s), *pair) for s, *pair in zip(row, added.names, added.thumbnails, strict=True)]
            for row in scores
        ]
        return [sorted(hits + more, key=lambda found: -found.score)[:k] for hits, more in zip(rows, own, strict=True)]

    def _show(self, name: str, home: Path, writer: IndexWriter, done: int, total: int) -> None:
        """Note the progress, and now and then let searches see it."""
        if self._stop.is_set():
            raise _Stopped
        known = len(self._indexes.get(name, ()))
        if name not in self._indexes or len(writer) - known >= SHOW_EVERY:
            writer.commit()
            if len(writer):
                self._indexes[name] = VectorIndex.open(home, self.models[name].identity)
        self._progress[name] = (done, total)

    def _update_quietly(self) -> None:
        try:
            self.update()
        except _Stopped:
            pass
        except (UserError, OSError) as error:
            self.error = str(error)
            log.error("%s", error)
        except Exception:
            self.error = "The pictures could not be indexed; the log of the server says why."
            log.exception("indexing %s", self.folder)

    def _home(self, pipeline: RetrievalPipeline) -> Path:
        place = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:16]
        model = hashlib.sha256(pipeline.identity.encode()).hexdigest()[:16]
        return cache_folder().absolute() / "search" / place / model


class _Stopped(Exception):
    """Ends an update early."""


def rank_texts(pipeline: RetrievalPipeline, picture: Image.Image, texts: Sequence[str]) -> list[tuple[str, float]]:
    """Texts with their cosine similarity to a picture, best first."""
    scores = pipeline.embed_texts(texts) @ pipeline.embed_images([picture])[0]
    return [(texts[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]


def shrunk(picture: Image.Image) -> Image.Image:
    """A copy of at most :data:`THUMBNAIL` pixels a side."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


@functools.lru_cache(maxsize=256)
def _thumbnail_of(path: Path, modified: int) -> Image.Image:
    if not modified:
        raise MediaError(path, "missing")
    return shrunk(open_image(path, min_side=THUMBNAIL))
