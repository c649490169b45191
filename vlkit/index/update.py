"""Bring the index of a folder up to date: embed new and changed items, drop removed ones, add captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from vlkit.data.batches_ahead import batches_ahead
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
        read: opens an item; raises MediaError if it cannot be used. Called by several threads, up to two batches ahead
            of ``embed``: what it returns should be small.
        embed: n opened items -> float32 [n, D].
        digest: hash of an item's content; called by several threads.
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

    def opened(item: Item) -> tuple[Item, X] | MediaError:
        """The item with its digest, and what it holds; an error that is returned does not end the work."""
        try:
            return replace(item, digest=digest(item)), read(item)
        except MediaError as error:
            return error

    done = 0
    for batch, found in batches_ahead(plan.todo, opened, batch_size):
        failures = {i.id: x for i, x in zip(batch, found, strict=True) if isinstance(x, MediaError)}
        if failures and strict:
            raise UserError(f"{next(iter(failures.values()))}; fix or remove it, or leave --strict out")
        bad |= failures
        good = [x for x in found if not isinstance(x, MediaError)]
        if good:
            writer.add([item for item, _ in good], embed([x for _, x in good]))
        done += len(batch)
        progress(done, len(plan.todo))
    # An item that can no longer be read must not keep its old vector in the index.
    writer.remove([item.id for item in plan.changed if item.id in bad])
    new, changed = (sum(item.id not in bad for item in part) for part in (plan.new, plan.changed))
    return Update(new, changed, plan.unchanged, len(plan.removed), list(bad.values()))


def describe_items(
    writer: IndexWriter,
    by: str,
    *,
    read: Callable[[Item], X],
    describe: Callable[[Sequence[X]], Sequence[str]],
    batch_size: int = 32,
    save_every: int = 128,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Add a caption to the metadata of every item that has none by the same model: ``caption`` and ``captioned_by``.

    Args:
        writer: the index, open and up to date; captions are saved every ``save_every`` items, so a crash loses few.
        by: identifies the model.
        read: opens an item; one that raises MediaError keeps what it has.
        describe: n opened items -> n captions.
        batch_size: items described at once.
        save_every: items after which captions are saved.
        progress: called with the numbers of items done and to do, before the first batch and after each.

    Returns:
        The number of captions added.
    """
    writer.commit()
    todo = [item for item in writer.items if item.metadata.get("captioned_by") != by]
    progress(0, len(todo))
    added = unsaved = 0
    for start in range(0, len(todo), batch_size):
        batch = todo[start : start + batch_size]
        opened = [(item, _read_or_error(read, item)) for item in batch]
        good = [(item, x) for item, x in opened if not isinstance(x, MediaError)]
        if good:
            captions = describe([x for _, x in good])
            items = [
                replace(item, metadata={**item.metadata, "caption": caption, "captioned_by": by})
                for (item, _), caption in zip(good, captions, strict=True)
            ]
            writer.add(items, writer.vectors(items))
        added, unsaved = added + len(good), unsaved + len(good)
        if unsaved >= save_every:
            writer.commit()
            unsaved = 0
        progress(start + len(batch), len(todo))
    return added


def _read_or_error(read: Callable[[Item], X], item: Item) -> X | MediaError:
    try:
        return read(item)
    except MediaError as error:
        return error
