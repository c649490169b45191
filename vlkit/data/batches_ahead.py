"""Reading with a few threads, while the model works on what was read before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

X = TypeVar("X")
Y = TypeVar("Y")

THREADS = min(16, max(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 4))
"""Threads that read: one per core, within bounds; at least 4, because files on a network make them wait."""


def batches_ahead(
    items: Sequence[X], read: Callable[[X], Y], size: int, threads: int = THREADS
) -> Iterator[tuple[Sequence[X], list[Y]]]:
    """Read items in batches; the next batch is read while the caller works on one.

    Args:
        items: n items.
        read: called by several threads; its errors reach the caller.
        size: items per batch; up to two batches of results are held.
        threads: number of threads.

    Yields:
        Up to ``size`` items in their order, and what ``read`` returns for each.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
    try:
        begun: tuple[Sequence[X], list[Future[Y]]] | None = None
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            following = batch, [pool.submit(read, item) for item in batch]
            if begun:
                yield begun[0], [future.result() for future in begun[1]]
            begun = following
        if begun:
            yield begun[0], [future.result() for future in begun[1]]
    finally:
        pool.shutdown(cancel_futures=True)
