"""Bring the index of a folder up to date: embed new and changed items, drop removed ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from vlkit.data.images import MediaError
from vlkit.errors import UserError
from vlkit.index.files import Item
from vlkit.index.writer import IndexWriter

X = TypeVar("X")


@dataclass(frozen=True)
class Update:
    """Result of :func:`update_index`: numbers of items, and those that could not be read."""

    new: int
    changed: int
    unchanged: int
    removed: int
    bad: list[MediaError]


def update_index(
    writer: IndexWriter,
    items: list[Item],
    *,
    read: Callable[[Item], X],
    embed: Callable[[Sequence[X]], np.ndarray],
    digest: Callable[[Item], str],
    strict: bool = False,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Update:
    """Embed new and changed items and drop removed ones.

    Args:
        writer: the index, open; what was added before a crash or Ctrl-C is kept.
        items: everything the index should hold, stamped.
        read: opens an item; raises MediaError if it cannot be used. Called by several threads.
        embed: n opened items -> float32 [n, D].
        digest: hash of an item's content.
        strict: stop at an item that cannot be read, instead of leaving it out.
        batch_size: items embedded at once.
        progress: called with the numbers of items done and to do, before the first batch and after each.

    Raises:
        UserError: an item cannot be read and ``strict`` is set.
    """
    plan = writer.diff(items, digest=digest)
    writer.remove(plan.removed)
    bad: dict[str, MediaError] = {}
    progress(0, len(plan.todo))
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(plan.todo), batch_size):
            batch = plan.todo[start : start + batch_size]
            opened = list(pool.map(lambda item: _read_or_error(read, item), batch))
            failures = {i.id: x for i, x in zip(batch, opened, strict=True) if isinstance(x, MediaError)}
            if failures and strict:
                raise UserError(f"{next(iter(failures.values()))}; fix or remove it, or leave --strict out")
            bad |= failures
            good = [(item, x) for item, x in zip(batch, opened, strict=True) if not isinstance(x, MediaError)]
            if good:
                digests = pool.map(lambda pair: digest(pair[0]), good)
                stamped = [replace(item, digest=d) for (item, _), d in zip(good, digests, strict=True)]
                writer.add(stamped, embed([x for _, x in good]))
            progress(start + len(batch), len(plan.todo))
    # An item that can no longer be read must not keep its old vector in the index.
    writer.remove([item.id for item in plan.changed if item.id in bad])
    new, changed = (sum(item.id not in bad for item in part) for part in (plan.new, plan.changed))
    return Update(new, changed, plan.unchanged, len(plan.removed), list(bad.values()))


def _read_or_error(read: Callable[[Item], X], item: Item) -> X | MediaError:
    try:
        return read(item)
    except MediaError as error:
        return error
