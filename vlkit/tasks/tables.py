"""Rows with images given as ``--data.root``: prepared in the cache folder on first use."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, cast

from vlkit.data.manifest import Dataset
from vlkit.data.sources.huggingface import MEDIA, read
from vlkit.data.sources.prepare import prepare
from vlkit.data.sources.rows import PREFIX
from vlkit.drawn.folder import whole_folder
from vlkit.errors import UserError, some
from vlkit.files import cache_folder

log = logging.getLogger(__name__)
TASKS = ("retrieval", "classification")
"""Tasks whose datasets can be read from rows."""


def table_dataset(root: str | Path, task: str, columns: str) -> Path:
    """The prepared dataset of a table, below ``cache_folder()/rows``; made on first use, then reused.

    A local table that has changed is prepared again; one on the hub is prepared once per name (pin it by
    ``hf:ORG/NAME@REVISION``).

    Args:
        root: see :func:`vlkit.data.sources.rows.opened`.
        task: what the dataset is for.
        columns: see :class:`vlkit.data.sources.rows.Columns`.

    Returns:
        The folder with ``dataset.json``.

    Raises:
        UserError: the table cannot be read, a row is wrong, or the cache cannot be written.
    """
    if task not in TASKS:
        raise UserError(f"{root}: rows are read for {' and '.join(TASKS)}; give a prepared dataset for {task}")
    name = str(root)
    place = Path(name.removeprefix(PREFIX))
    identity = json.dumps([name if not place.exists() else _state(place), task, columns])
    home = (
        cache_folder().absolute() / "rows" / f"{place.name[:40]}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    )

    def ready() -> bool:
        try:
            return bool(Dataset.open(home, task))
        except UserError:
            return False

    if ready():
        return home
    log.info("preparing %s for %s in %s (once)", name, task, home)
    try:
        with whole_folder(home, ready) as folder:
            if folder is not None:
                source = read(name, cast(Any, task), folder, columns)
                if source.wrong:
                    fix = f"prepare it by data_prep/huggingface.py --rows {name} --partial, which leaves them out"
                    raise UserError(f"{name}: {len(source.wrong)} rows cannot be used ({some(source.wrong, 1)}); {fix}")
                prepared = prepare(source, folder, folder / MEDIA)
                log.info("%s", prepared.summary().replace(str(folder), str(home)))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{home}: cannot write ({reason}); set VLKIT_CACHE to a folder with free space") from error
    return home


def _state(place: Path) -> list[Any]:
    """Names, sizes and modification times of the files of a local table."""
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    states = [(path, path.stat()) for path in files]
    return [str(place.resolve()), *([str(path), state.st_size, state.st_mtime_ns] for path, state in states)]
