"""Create the demo world on disk, from parts that are each either complete or missing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from vlkit.drawn import VERSION
from vlkit.drawn.coco import write_coco, write_scenes
from vlkit.drawn.folder import whole_folder
from vlkit.drawn.kind_images import DARK, write_kind_images
from vlkit.drawn.moments import write_moments
from vlkit.drawn.msrvtt import write_msrvtt
from vlkit.drawn.refcoco import write_refcoco
from vlkit.drawn.vqa import write_vqa
from vlkit.drawn.world import COUNTS, Style, World, WorldSize, draw_world, read_world
from vlkit.errors import UserError
from vlkit.files import read_json, write_json

log = logging.getLogger(__name__)

MARKER = "world.json"

Writer = Callable[[World, Path], None]
WRITERS: tuple[Writer, ...] = (write_scenes, write_coco)
"""Writers of the files that every world has beside its images, called with (world, folder)."""
PARTS: dict[str, Writer] = {
    "vqa": write_vqa,
    "refcoco": write_refcoco,
    "msrvtt": write_msrvtt,
    "kinds": write_kind_images,
    "dark_kinds": partial(write_kind_images, exposure=DARK),
    "moments": write_moments,
}
"""Writers of optional parts: a part is a sub-folder of that name, called with (world, sub-folder)."""


def make_world(
    output: str | Path,
    seed: int = 0,
    size: WorldSize = "medium",
    side: int = 96,
    workers: int = 0,
    parts: Iterable[str] | None = None,
    style: Style = "drawn",
) -> Path:
    """Write the demo world to ``output``; existing files of the same settings are kept.

    Args:
        output: folder to make. It appears at the end, whole; a part that is added later does so too.
        seed: not negative; the same seed gives the same files, another one other scenes of the same statistics.
        size: number of scenes (:data:`vlkit.drawn.world.COUNTS`).
        side: width and height of the images in pixels.
        workers: processes to draw with; 0 = this one alone. More need a main module that can be imported.
        parts: keys of :data:`PARTS` to have besides images, captions and instances; None = all.
        style: how things are drawn (:data:`vlkit.drawn.world.DOMAINS`).

    Returns:
        ``output``.

    Raises:
        UserError: a setting is out of range, or ``output`` holds something else.
    """
    output = Path(output)
    wanted = tuple(PARTS if parts is None else parts)
    if seed < 0:
        raise UserError(f"seed {seed}: is negative; use 0 or more")
    if not 32 <= side <= 512:
        raise UserError(f"side {side}: images have 32 to 512 pixels a side")
    settings = {"format": "vlkit-demo-world", "version": VERSION, "seed": seed, "size": size, "side": side}
    settings["style"] = style
    if not is_complete(output, settings):
        with whole_folder(output, lambda: is_complete(output, settings)) as folder:
            if folder is not None:
                world = draw_world(seed, COUNTS[size], folder, side, workers, style)
                for write in WRITERS:
                    write(world, folder)
                for part in wanted:
                    (folder / part).mkdir()
                    PARTS[part](world, folder / part)
                write_json(folder / MARKER, {**settings, "counts": COUNTS[size]})
                return output
    missing = [part for part in wanted if not (output / part).is_dir()]
    if missing:
        add_parts(output, missing, seed, side, workers)
    else:
        log.info("%s: this demo world is already complete", output)
    return output


def add_parts(output: Path, parts: Iterable[str], seed: int, side: int, workers: int = 0) -> None:
    """Write parts that a complete world lacks; arguments as :func:`make_world`."""
    world = read_world(output, seed, side, workers)
    for part in parts:
        target = output / part
        with whole_folder(target, target.is_dir) as folder:
            if folder is not None:
                PARTS[part](world, folder)


def is_complete(output: Path, settings: dict[str, Any]) -> bool:
    """Whether ``output`` is a complete world of these settings, whatever its parts.

    Raises:
        UserError: it is neither that nor free for a new one.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return False
    marker = output / MARKER
    if not marker.is_file():
        raise UserError(f"{output}: exists and is not a demo world; choose another --output or remove it")
    found = {"style": "drawn", **read_json(marker)}  # worlds of earlier versions do not state it
    other = [key for key in settings if found.get(key) != settings[key]]
    if other:
        got = ", ".join(f"{key} {found.get(key)}" for key in other)
        raise UserError(f"{output}: holds another demo world ({got}); choose another --output or remove it")
    return True
