"""Bring the index of a folder up to date: what is new or changed is embedded, what is gone dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from vlkit.data.images import IMAGE_SUFFIXES, MediaError
from vlkit.errors import NothingThereError, UserError
from vlkit.index.files import Item
from vlkit.index.writer import IndexWriter

X = TypeVar("X")


@dataclass(frozen=True)
class Update:
    """What :func:`update_index` did: numbers of items, and what could not be read."""

    new: int
    changed: int
    unchanged: int
    removed: int
    bad: list[MediaError]


def find_pictures(folder: Path) -> list[Item]:
    """Every picture file below ``folder``, sorted; named by its path in it, stamped by size and modification time.

    Raises:
        UserError: as :func:`find_files`.
    """
    files = find_files(folder, "images", IMAGE_SUFFIXES)
    return [Item(path.relative_to(folder).as_posix(), stamp_of(path)) for path in files]


def find_files(folder: Path, flag: str, suffixes: frozenset[str]) -> list[Path]:
    """Files below ``folder`` with one of these endings, sorted.

    Raises:
        UserError: no such folder, or nothing in it (NothingThereError); the message names ``flag``.
    """
    if not folder.is_dir():
        raise UserError(f"--{flag} {folder}: no such folder")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    if not files:
        what = "pictures" if flag == "images" else flag
        raise NothingThereError(f"--{flag} {folder}: no {what} there ({', '.join(sorted(suffixes))})")
    return files


def stamp_of(path: Path) -> str:
    """Size and modification time."""
    state = path.stat()
    return f"{state.st_size}-{state.st_mtime_ns}"


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
    """Embed what is new or changed and drop what is gone.

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
                raise UserError(f"{next(iter(failures.values()))}; mend or remove it, or leave --strict out")
            bad |= failures
            good = [(item, x) for item, x in zip(batch, opened, strict=True) if item.id not in failures]
            if good:
                digests = pool.map(lambda pair: digest(pair[0]), good)
                stamped = [replace(item, digest=d) for (item, _), d in zip(good, digests, strict=True)]
                writer.add(stamped, embed([x for _, x in good]))
            progress(start + len(batch), len(plan.todo))
    # What was fine and no longer is must not stay in the index with its old vector.
    writer.remove([item.id for item in plan.changed if item.id in bad])
    new, changed = (sum(item.id not in bad for item in part) for part in (plan.new, plan.changed))
    return Update(new, changed, plan.unchanged, len(plan.removed), list(bad.values()))


def _read_or_error(read: Callable[[Item], X], item: Item) -> X | MediaError:
    try:
        return read(item)
    except MediaError as error:
        return error
