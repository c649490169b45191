"""Folders that several models search: indexed in the background, stored between starts."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from vlkit.cli.show import visible
from vlkit.data.images import MediaError
from vlkit.errors import NothingThereError, UserError
from vlkit.extract.identity import model_key
from vlkit.files import cache_folder
from vlkit.index import IndexWriter, VectorIndex
from vlkit.index.files import Item
from vlkit.index.reader import Hit
from vlkit.index.update import update_index

log = logging.getLogger(__name__)

BATCH, SHOW_EVERY = 16, 256
"""Items embedded at once (a concurrent search waits for one such batch), and items until searches see the new ones."""


@dataclass(frozen=True)
class Medium:
    """What a folder holds and how a pipeline reads it.

    Attributes:
        folder: where the files are.
        find: -> its items, and errors for files that could not be read.
        read: (pipeline, item) -> the opened item; raises MediaError if it is unusable.
        embed: (pipeline, n opened items) -> float32 [n, E].
        digest: item -> hash of its content.
    """

    folder: Path
    find: Callable[[], tuple[list[Item], list[MediaError]]]
    read: Callable[[Any, Item], Any]
    embed: Callable[[Any, Sequence[Any]], np.ndarray]
    digest: Callable[[Item], str]


class Library:
    """A folder indexed by one or more models. Any number of threads may search it, even while it is being indexed.

    Args:
        medium: the folder, searched with all its sub-folders, and what it holds.
        models: pipelines by name; each has ``dim`` and ``identity``, and its own index in the cache folder.

    Attributes:
        error: the reason if indexing failed, else None.
        left_out: files that could not be read, with the reason.
    """

    def __init__(self, medium: Medium, models: Mapping[str, Any]) -> None:
        self.folder, self.models, self._medium = medium.folder, dict(models), medium
        self.error: str | None = None
        self.left_out: list[str] = []
        self._indexes: dict[str, VectorIndex] = {}
        self._progress: dict[str, tuple[int, int]] = {}
        self._finished: set[str] = set()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def start(self) -> None:
        """Start indexing in a background thread."""
        self._thread = threading.Thread(target=self._update_quietly, name=f"index {self.folder}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current batch; embedded items are saved for the next start."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def finished(self) -> bool:
        """Whether every model has indexed the folder."""
        return self._finished >= set(self.models)

    def progress(self) -> tuple[int, int]:
        """Numbers of embedded items and of items to embed, over all models started so far."""
        counts = list(self._progress.values())
        return sum(done for done, _ in counts), sum(total for _, total in counts)

    def __bool__(self) -> bool:
        """True even without items."""
        return True

    def __len__(self) -> int:
        """Number of items that every model can find now."""
        return min((len(self._indexes.get(name, ())) for name in self.models), default=0)

    def items(self) -> list[Item]:
        """The files of the folder that can be searched, whether or not they are indexed yet.

        Raises:
            UserError: no such folder, or nothing in it.
        """
        return self._medium.find()[0]

    def update(self) -> None:
        """Bring the index of every model up to date, and return when that is done.

        Raises:
            UserError: no such folder, nothing in it, or the cache cannot be written.
        """
        items, unreadable = self._medium.find()
        for name, pipeline in self.models.items():
            index, bad = self._index(pipeline, items, functools.partial(self._show, name))
            self._indexes[name] = index
            self.left_out = [visible(error) for error in unreadable + bad]
            self._finished.add(name)
        for message in self.left_out:
            log.warning("left out: %s", message)

    def add(self, name: str, pipeline: Any, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Index the folder with one more model; it can be searched once this returns.

        Args:
            name: name of the model.
            pipeline: as in ``models``.
            progress: called with the numbers of embedded items and of items to embed.

        Raises:
            UserError: no such folder, nothing in it, or the cache cannot be written.
        """

        def show(home: Path, writer: IndexWriter, done: int, total: int) -> None:
            if self._stop.is_set():
                raise _Stopped
            progress(done, total)

        try:
            items = self._medium.find()[0]
        except NothingThereError:  # a visitor's own files can be searched all the same
            items = []
        index, _ = self._index(pipeline, items, show)
        # The model comes last: whoever sees it finds its index.
        self._indexes[name] = index
        self._finished.add(name)
        self.models = {**self.models, name: pipeline}

    def _index(
        self, pipeline: Any, items: list[Item], show: Callable[[Path, IndexWriter, int, int], None]
    ) -> tuple[VectorIndex, list[MediaError]]:
        """The model's index of ``items``, brought up to date, and what could not be read."""
        home = self._home(pipeline)
        home.parent.mkdir(parents=True, exist_ok=True)
        # Two servers over one folder: the second waits and then finds nothing left to do.
        with (
            filelock.FileLock(f"{home}.lock"),
            IndexWriter.open(home, pipeline.dim, pipeline.identity) as writer,
        ):
            update = update_index(
                writer,
                items,
                read=functools.partial(self._medium.read, pipeline),
                embed=functools.partial(self._medium.embed, pipeline),
                digest=self._medium.digest,
                batch_size=BATCH,
                progress=functools.partial(show, home, writer),
            )
        return VectorIndex.open(home, pipeline.identity), update.bad

    def search(self, model: str, queries: np.ndarray, k: int) -> list[list[Hit]]:
        """The k nearest items of each query, best first, among those indexed so far.

        Args:
            model: the model that embedded the queries; its index is searched.
            queries: float32 [Q, E].
            k: at least 1.

        Raises:
            UserError: nothing is indexed yet, or the folder could not be indexed.
        """
        index = self._indexes.get(model)
        if index is None and self.error:
            raise UserError(self.error)
        if (index is None or not len(index)) and self.finished:
            raise UserError(f"There is nothing to find: none of the {len(self.left_out)} files could be read.")
        if index is None or not len(index):
            raise UserError("The folder is still being indexed; try again in a moment.")
        return index.search(queries, k)

    def _show(self, name: str, home: Path, writer: IndexWriter, done: int, total: int) -> None:
        """Record the progress, and regularly let searches see the new items."""
        if self._stop.is_set():
            raise _Stopped
        if name not in self._indexes or len(writer) - len(self._indexes[name]) >= SHOW_EVERY:
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
            self.error = visible(error)
            log.error("%s", error)
        except Exception:
            self.error = "The folder could not be indexed; the log of the server says why."
            log.exception("indexing %s", self.folder)

    def _home(self, pipeline: Any) -> Path:
        place = hashlib.sha256(os.fsencode(self.folder.resolve())).hexdigest()[:16]
        model = hashlib.sha256(model_key(pipeline.identity).encode()).hexdigest()[:16]
        return cache_folder().absolute() / "search" / place / model


class _Stopped(Exception):
    """Ends an update early."""
