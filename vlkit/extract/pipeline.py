"""Shards to parts in one process: threads decode ahead through bounded queues, and the model waits for none of them."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlkit.data.images import MediaError, content_size, decode_image
from vlkit.data.shards import Entry, Shard
from vlkit.extract.parts import Parts, Row

X = TypeVar("X")


class ImageModel(Protocol):
    """A model that embeds images."""

    @property
    def dim(self) -> int:
        """E."""
        ...

    @property
    def identity(self) -> str:
        """Everything that determines the vectors."""
        ...

    @property
    def min_side(self) -> int | None:
        """Pixels that both sides of a JPEG keep if it is decoded at a part of its size; None = always at full size."""
        ...

    def transform(self, image: Image.Image) -> Tensor:
        """An RGB image -> [3, H, W] float32; called by several threads."""
        ...

    def embed(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, E], unit norm, on any device; may return before the device has finished."""
        ...


@dataclass(frozen=True)
class Options:
    """How a process works.

    Attributes:
        batch_size: images per batch; a batch holds images of one shard, so results do not depend on the runner.
        threads: threads that decode.
        ahead: images read or decoded that are in no batch yet; with four batches, the bound of the memory.
        pin: put batches into page-locked memory, for CUDA.
    """

    batch_size: int = 64
    threads: int = 4
    ahead: int = 256
    pin: bool = False


@dataclass
class Summary:
    """What was done: numbers of parts and images, and up to :data:`SHOWN` errors."""

    written: int = 0
    skipped: int = 0
    images: int = 0
    unreadable: int = 0
    errors: list[str] = field(default_factory=list)

    def add(self, other: Summary) -> None:
        """Add the numbers of another process."""
        self.written, self.skipped = self.written + other.written, self.skipped + other.skipped
        self.images, self.unreadable = self.images + other.images, self.unreadable + other.unreadable
        self.errors = [*self.errors, *other.errors][:SHOWN]


SHOWN = 20
JPEG = b"\xff\xd8"
"""How every JPEG begins; only these are decoded at a part of their size."""
Progress = Callable[[int, "Shard | None"], None]
"""Called with a number of further images, or with 0 and the shard whose part is whole."""


@dataclass
class _Batch:
    """Rows of one shard in order, with the pixels of those without an error; ``ends``: the shard that ends here."""

    rows: list[Row]
    pixels: Tensor | None
    ends: Shard | None


def embed_shards(
    shards: Sequence[Shard],
    model: ImageModel,
    parts: Parts,
    options: Options | None = None,
    progress: Progress = lambda images, shard: None,
) -> Summary:
    """Embed the shards whose part is missing, and write a part for each.

    Args:
        shards: the shards of this process.
        model: called by one thread, apart from ``transform``.
        parts: where the parts go.
        options: batches and memory.
        progress: see :data:`Progress`.
    """
    options, done = options or Options(), Summary()
    todo = [shard for shard in shards if not parts.holds(shard)]
    done.skipped = len(shards) - len(todo)
    rows: list[Row] = []
    vectors: list[np.ndarray] = []

    def collect(batch: _Batch, embedded: Tensor | None) -> None:
        """Take over a batch; write the part at the end of its shard."""
        found = np.empty((0, model.dim), np.float16) if embedded is None else embedded.float().cpu().numpy()
        own, good = _finite(batch.rows, found)
        rows.extend(own)
        vectors.append(good.astype(np.float16))
        progress(len(batch.rows), None)
        if batch.ends is not None:
            parts.write(batch.ends, rows, np.concatenate(vectors))
            bad = [f"{row.id}: {row.error}" for row in rows if row.error]
            done.add(Summary(1, 0, len(rows) - len(bad), len(bad), bad[:SHOWN]))
            rows.clear()
            vectors.clear()
            progress(0, batch.ends)

    with ThreadPoolExecutor(options.threads, thread_name_prefix="decode") as pool:
        waiting: tuple[_Batch, Tensor | None] | None = None
        for batch in ahead(_batches(_decoding(todo, model, pool, options.ahead), options), 2):
            embedded = None if batch.pixels is None else model.embed(batch.pixels)
            # The device works on this batch while the vectors of the one before are fetched.
            if waiting is not None:
                collect(*waiting)
            waiting = batch, embedded
        if waiting is not None:
            collect(*waiting)
    return done


def _decoding(
    shards: Sequence[Shard], model: ImageModel, pool: ThreadPoolExecutor, most: int
) -> Iterator[Future[tuple[Row, Tensor | None]] | Shard]:
    """Read the shards in a thread: a future for each image file, and each shard after its last one."""

    def submitted() -> Iterator[Future[tuple[Row, Tensor | None]] | Shard]:
        for shard in shards:
            for entry in shard.entries():
                yield pool.submit(decode, entry, model)
            yield shard

    return ahead(submitted(), most)


def decode(entry: Entry, model: ImageModel) -> tuple[Row, Tensor | None]:
    """The row of an image file and its pixels; None with an error in the row if it cannot be read."""
    if entry.error:
        return Row(entry.id, error=entry.error), None
    row = Row(entry.id, bytes=len(entry.content), sha256=hashlib.sha256(entry.content).hexdigest())
    try:
        image = decode_image(entry.content, entry.id, min_side=model.min_side)
        in_parts = model.min_side is not None and entry.content.startswith(JPEG)
        width, height = content_size(entry.content, entry.id) if in_parts else image.size
        return replace(row, width=width, height=height), model.transform(image)
    except MediaError as error:
        return replace(row, error=error.reason), None
    except Exception as error:  # a transform that fails for odd sizes must not end the work of days
        return replace(row, error=f"cannot be transformed ({' '.join(str(error).split())[:120]})"), None


def _batches(decoded: Iterable[Future[Any] | Shard], options: Options) -> Iterator[_Batch]:
    """Stack decoded images; the last batch of a shard may be small or empty."""
    rows: list[Row] = []
    pixels: list[Tensor] = []
    for item in decoded:
        ends = item if isinstance(item, Shard) else None
        if not isinstance(item, Shard):
            row, image = item.result()
            rows.append(row)
            pixels += [] if image is None else [image]
        if ends is not None or len(pixels) == options.batch_size:
            stacked = torch.stack(pixels) if pixels else None
            yield _Batch(rows, stacked.pin_memory() if stacked is not None and options.pin else stacked, ends)
            rows, pixels = [], []


def _finite(rows: list[Row], vectors: np.ndarray) -> tuple[list[Row], np.ndarray]:
    """Turn rows whose vector is not finite into errors; the rows, and the vectors that are left."""
    finite = np.asarray(np.isfinite(vectors).all(axis=1))
    if finite.all():
        return rows, vectors
    verdicts = iter(finite.tolist())
    checked = [
        row if row.error or next(verdicts) else replace(row, error="the model gives no finite vector") for row in rows
    ]
    return checked, vectors[finite]


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


_END: Any = object()


def ahead(items: Iterable[X], most: int) -> Iterator[X]:
    """Compute items in a thread, at most ``most`` of them before they are taken; errors reach the consumer."""
    ready: queue.Queue[Any] = queue.Queue(most)
    stopped = threading.Event()

    def offer(item: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def fill() -> None:
        try:
            for item in items:
                if not offer(item):
                    return
            offer(_END)
        except BaseException as error:
            offer(_Failed(error))

    threading.Thread(target=fill, daemon=True, name="ahead").start()
    try:
        while (item := ready.get()) is not _END:
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        stopped.set()
