"""Image search with several models, including images that a visitor adds."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from vlkit.cli.show import visible
from vlkit.data.images import MediaError, open_image
from vlkit.data.scan import find_media
from vlkit.errors import UserError
from vlkit.index.files import Item
from vlkit.index.media import image_items, media_digest
from vlkit.serving.library import Library, Medium
from vlkit.tasks.retrieval.pipeline import RetrievalPipeline

log = logging.getLogger(__name__)

THUMBNAIL = 512
"""Longer side of a thumbnail, in pixels."""


def images_in(folder: Path) -> Medium:
    """The image files below ``folder``, as a library's medium."""

    def find() -> tuple[list[Item], list[MediaError]]:
        found = find_media(folder, "images", "--images")
        if found.note():
            log.warning("%s: %s", folder, found.note())
        return image_items(found), []

    return Medium(
        folder,
        find=find,
        read=lambda pipeline, item: pipeline.transform(folder / item.id, draft=True),
        embed=lambda pipeline, images: pipeline.embed_pixels(images),
        digest=lambda item: media_digest(folder / item.id),
    )


@dataclass(frozen=True)
class Found:
    """A search result: cosine similarity, name as it can be shown, and the image's file or the image itself."""

    score: float
    name: str
    source: Path | Image.Image

    def thumbnail(self) -> Image.Image:
        """The image, at most :data:`THUMBNAIL` pixels per side.

        Raises:
            MediaError: the file was deleted or damaged meanwhile.
        """
        if isinstance(self.source, Image.Image):
            return self.source
        return _thumbnail_of(self.source, self.source.stat().st_mtime_ns if self.source.exists() else 0)


def preview_of(library: Library, count: int) -> list[tuple[Image.Image, str]]:
    """Thumbnails and names of up to ``count`` images, evenly spaced over a library's files; unreadable ones are left
    out.
    """
    items = library.items()
    shown = []
    for item in items[:: max(1, len(items) // count)][:count]:
        with contextlib.suppress(MediaError, OSError):
            found = Found(0.0, visible(item.id), library.folder / item.id)
            shown.append((found.thumbnail(), found.name))
    return shown


@dataclass(frozen=True)
class AddedImages:
    """Images that one visitor added: they are kept in memory and only that visitor finds them.

    Attributes:
        names: the visitor's names for them.
        thumbnails: one image per name.
        vectors: by model, float32 [n, E].
    """

    names: tuple[str, ...] = ()
    thumbnails: tuple[Image.Image, ...] = ()
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def plus(self, name: str, image: Image.Image, models: Mapping[str, RetrievalPipeline]) -> AddedImages:
        """These images and one more, embedded by every model; a model that is new here also embeds the earlier ones."""
        earlier = [*self.thumbnails]
        vectors = {
            model: np.concatenate([self.vectors[model], pipeline.embed_images([image])])
            if model in self.vectors
            else pipeline.embed_images([*earlier, image])
            for model, pipeline in models.items()
        }
        return AddedImages((*self.names, name), (*self.thumbnails, shrunk(image)), vectors)


def search_images(
    library: Library, model: str, queries: np.ndarray, k: int, added: AddedImages | None = None
) -> list[list[Found]]:
    """The k nearest images of each query, best first, among those indexed so far.

    Args:
        library: a library of images.
        model: the model that embedded the queries; its index is searched.
        queries: float32 [Q, E].
        k: at least 1.
        added: a visitor's own images, searched as well.

    Raises:
        UserError: nothing is indexed yet, or the folder could not be indexed.
    """
    own_vectors = None if added is None else added.vectors.get(model)
    try:
        found = library.search(model, queries, k)
    except UserError:
        if own_vectors is None or not (library.finished or library.error):
            raise
        found = [[] for _ in queries]  # an empty folder: only the visitor's images are there
    rows = [[Found(hit.score, visible(hit.item.id), library.folder / hit.item.id) for hit in hits] for hits in found]
    if added is None or own_vectors is None:
        return rows
    scores = queries @ own_vectors.T
    own = [
        [Found(float(s), name, image) for s, name, image in zip(row, added.names, added.thumbnails, strict=True)]
        for row in scores
    ]
    return [sorted(hits + more, key=lambda found: -found.score)[:k] for hits, more in zip(rows, own, strict=True)]


def rank_texts(pipeline: RetrievalPipeline, image: Image.Image, texts: Sequence[str]) -> list[tuple[str, float]]:
    """Texts with their cosine similarity to an image, best first."""
    scores = pipeline.embed_texts(texts) @ pipeline.embed_images([image])[0]
    return [(texts[int(i)], float(scores[i])) for i in np.argsort(-scores, kind="stable")]


def shrunk(image: Image.Image) -> Image.Image:
    """A copy of at most :data:`THUMBNAIL` pixels per side."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


@functools.lru_cache(maxsize=256)
def _thumbnail_of(path: Path, modified: int) -> Image.Image:
    if not modified:
        raise MediaError(path, "missing")
    return shrunk(open_image(path, min_side=THUMBNAIL))
