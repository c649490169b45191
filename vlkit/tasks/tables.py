"""Rows with images and tars of pairs given as ``--data.root``: prepared in the cache folder on first use."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vlkit.cli.show import Console, Progress
from vlkit.data.manifest import Dataset
from vlkit.data.sources import huggingface, shards
from vlkit.data.sources.prepare import Source, prepare
from vlkit.data.sources.rows import PREFIX, is_table
from vlkit.drawn.folder import whole_folder
from vlkit.errors import UserError, some
from vlkit.files import cache_folder

log = logging.getLogger(__name__)
HOLD_OUT = 0.1
"""Default of ``--data.hold_out``."""


@dataclass(frozen=True)
class Form:
    """A form of data that is prepared on first use.

    Attributes:
        name: what it is called in messages; its folder below the cache folder.
        parts: what may be wrong in it, in messages.
        tasks: tasks whose datasets can be read from it.
        script: the script that prepares it with more flags, and the flag that names it there.
        state: root -> JSON value that changes when the data do.
        read: (root, task, folder, columns, share, progress) -> the source, and the folder of its media.
    """

    name: str
    parts: str
    tasks: tuple[str, ...]
    script: str
    state: Callable[[str], Any]
    read: Callable[[str, str, Path, str, float, Callable[[int, int], None]], tuple[Source, Path]]


def form_of(root: str | Path) -> Form | None:
    """The form of ``--data.root``; None for a prepared dataset."""
    return TARS if shards.are_tars(root) else ROWS if is_table(root) else None


def prepared_once(form: Form, root: str | Path, task: str, columns: str, hold_out: float = HOLD_OUT) -> Path:
    """The prepared dataset of rows or tars, below ``cache_folder()``; made on first use, then reused.

    Local data that have changed are prepared again; those on the hub once per name (pin it by
    ``hf:ORG/NAME@REVISION``).

    Args:
        form: what ``root`` is (:func:`form_of`).
        root: see :func:`vlkit.data.sources.rows.opened` and :func:`vlkit.data.sources.shards.read`.
        task: what the dataset is for.
        columns: see :class:`vlkit.data.sources.rows.Columns` and :func:`vlkit.data.sources.shards.fields_of`.
        hold_out: share of the images for validation, and as many for testing, where the data name no such splits.

    Returns:
        The folder with ``dataset.json``.

    Raises:
        UserError: the data cannot be read, a row or member is wrong, or the cache cannot be written.
    """
    if task not in form.tasks:
        raise UserError(
            f"{root}: {form.name} are read for {' and '.join(form.tasks)}; give a prepared dataset for {task}"
        )
    if not 0 <= hold_out < 0.5:
        raise UserError(f"--data.hold_out {hold_out:g}: a share of at least 0 and below 0.5")
    name = str(root)
    identity = hashlib.sha256(json.dumps([form.state(name), task, columns, hold_out]).encode()).hexdigest()[:16]
    label = re.sub(r"[^\w.-]+", "-", Path(name.removeprefix(PREFIX)).name)[:40]
    home = cache_folder().absolute() / form.name / f"{label}-{identity}"

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
                source, media = _read(form, name, task, folder, columns, hold_out)
                if source.wrong:
                    fix = f"prepare it by {form.script} {name} --partial, which leaves them out"
                    raise UserError(
                        f"{name}: {len(source.wrong)} {form.parts} cannot be used ({some(source.wrong, 1)}); {fix}"
                    )
                prepared = prepare(source, folder, media)
                log.info("%s", prepared.summary().replace(str(folder), str(home)))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{home}: cannot write ({reason}); set VLKIT_CACHE to a folder with free space") from error
    return home


def _read(form: Form, name: str, task: str, folder: Path, columns: str, hold_out: float) -> tuple[Source, Path]:
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        shown = bar.add_task(f"read {form.name}")
        show: Callable[[int, int], None] = lambda done, total: bar.update(shown, completed=done, total=total)  # noqa: E731
        return form.read(name, task, folder, columns, hold_out, show)


def _read_rows(name: str, task: str, folder: Path, columns: str, share: float, progress: Any) -> tuple[Source, Path]:
    source = huggingface.read(name, cast(Any, task), folder, columns, val=share, test=share, progress=progress)
    return source, folder / huggingface.MEDIA


def _read_tars(name: str, task: str, folder: Path, columns: str, share: float, progress: Any) -> tuple[Source, Path]:
    return shards.read(name, columns, val=share, test=share, progress=progress)


def _rows_state(name: str) -> Any:
    place = Path(name.removeprefix(PREFIX))
    if not place.exists():
        return name
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    return [str(place.resolve()), *_states(files)]


def _states(files: list[Path]) -> list[Any]:
    states = [(path.absolute(), path.stat()) for path in files]
    return [[str(path), state.st_size, state.st_mtime_ns] for path, state in states]


ROWS = Form("rows", "rows", ("retrieval", "classification"), "data_prep/huggingface.py --rows", _rows_state, _read_rows)
TARS = Form(
    "tars",
    "members",
    ("retrieval",),
    "data_prep/shards.py --tars",
    lambda name: _states(shards.find_tars(name)),
    _read_tars,
)
