"""Bring the index of a folder of pictures up to date: new and changed ones are embedded, removed ones dropped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from vlkit.data.images import IMAGE_SUFFIXES, MediaError, open_image
from vlkit.errors import UserError
from vlkit.files import sha256_of
from vlkit.index.files import Item
from vlkit.index.writer import IndexWriter

Embed = Callable[[Sequence[Image.Image]], np.ndarray]
"""n pictures -> float32 [n, D]."""


@dataclass(frozen=True)
class Update:
    """What :func:`update_pictures` did: numbers of pictures, and what could not be read."""

    new: int
    changed: int
    unchanged: int
    removed: int
    bad: list[MediaError]


def find_pictures(folder: Path) -> list[Item]:
    """Every picture file below ``folder``, sorted; named by its path in it, stamped by size and modification time.

    Raises:
        UserError: no such folder, or no pictures in it.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder")
    items = [_item_of(path, folder) for path in _picture_files(folder)]
    if not items:
        raise UserError(f"--images {folder}: no pictures there ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return items


def update_pictures(
    writer: IndexWriter,
    folder: Path,
    items: list[Item],
    embed: Embed,
    *,
    strict: bool = False,
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Update:
    """Embed what is new or changed and drop what is gone.

    Args:
        writer: the index, open; what was added before a crash or Ctrl-C is kept.
        folder: the pictures.
        items: what :func:`find_pictures` gave.
        embed: the model.
        strict: stop at a picture that cannot be read, instead of leaving it out.
        batch_size: pictures embedded at once.
        progress: called with the numbers of pictures done and to do, before the first batch and after each.

    Raises:
        UserError: a picture cannot be read and ``strict`` is set.
    """
    plan = writer.diff(items, digest=lambda item: sha256_of(folder / item.id))
    writer.remove(plan.removed)
    bad: list[MediaError] = []
    progress(0, len(plan.todo))
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(plan.todo), batch_size):
            batch = plan.todo[start : start + batch_size]
            opened = list(pool.map(lambda item: _read(folder / item.id), batch))
            failures = [result for result in opened if isinstance(result, MediaError)]
            if failures and strict:
                raise UserError(f"{failures[0]}; mend or remove it, or leave --strict out")
            bad += failures
            good = [(i, p) for i, p in zip(batch, opened, strict=True) if not isinstance(p, MediaError)]
            if good:
                digests = pool.map(lambda pair: sha256_of(folder / pair[0].id), good)
                stamped = [replace(i, digest=d) for (i, _), d in zip(good, digests, strict=True)]
                writer.add(stamped, embed([picture for _, picture in good]))
            progress(start + len(batch), len(plan.todo))
    failed = {Path(error.path) for error in bad}
    new, changed = ([i for i in part if folder / i.id not in failed] for part in (plan.new, plan.changed))
    # A picture that was fine and no longer is must not stay in the index with its old vector.
    writer.remove([item.id for item in plan.changed if item not in changed])
    return Update(len(new), len(changed), plan.unchanged, len(plan.removed), bad)


def _picture_files(folder: Path) -> Iterator[Path]:
    yield from sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _item_of(path: Path, folder: Path) -> Item:
    state = path.stat()
    return Item(path.relative_to(folder).as_posix(), f"{state.st_size}-{state.st_mtime_ns}")


def _read(path: Path) -> Image.Image | MediaError:
    """The picture, or why it cannot be read."""
    try:
        return open_image(path)
    except MediaError as error:
        return error
