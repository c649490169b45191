"""The adapter that is exported: its model in a form without recomputation, its base and its config."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.facts import MethodOptions
from vlkit.adapters.mix import set_side_mix, side_mix
from vlkit.adapters.options import adapter_options
from vlkit.encoders.bases import ClipBase
from vlkit.engine.checkpoint import load_adapter
from vlkit.errors import UserError
from vlkit.tasks.hub import download, is_repository
from vlkit.tasks.load import load
from vlkit.tasks.retrieval.model import build_model
from vlkit.tasks.retrieval.pipeline import RetrievalPipeline
from vlkit.tasks.two_tower import HeadOptions, TwoTower

TASK = "retrieval"


@dataclass
class Source:
    """A saved retrieval adapter on its base, on the CPU, in eval mode and without gradient.

    Attributes:
        folder: the adapter folder.
        pipeline: what ``vlkit.load`` returns, the reference that exports are checked against.
        model: the two-tower model; each encoder runs in one piece.
        base: the base; methods that train the base have changed its towers.
        options: the method and its options.
        head: options of the heads.
    """

    folder: Path
    pipeline: RetrievalPipeline
    model: TwoTower
    base: ClipBase
    options: MethodOptions
    head: HeadOptions


def open_source(folder: str | Path, mix: float = 1.0, mix_beta: float = 0.0) -> Source:
    """Load an adapter for export.

    Args:
        folder: a run or adapter folder, or an adapter on the hub.
        mix, mix_beta: see :func:`vlkit.tasks.load.load`.

    Raises:
        UserError: it is no retrieval adapter, or its base cannot be loaded.
    """
    if is_repository(folder):
        folder = download(str(folder))
    folder = Path(folder)
    pipeline = load(folder, "cpu", task=TASK, mix=mix, mix_beta=mix_beta)
    config, _ = load_adapter(folder)
    options, head = adapter_options(config["adapters"]["image"]), HeadOptions(**config["head"])
    model = in_one_piece(pipeline.embedder.model, pipeline.embedder.base, options, head)
    return Source(folder, pipeline, model, pipeline.embedder.base, options, head)


def in_one_piece(model: TwoTower, base: ClipBase, options: Any, head: HeadOptions) -> TwoTower:
    """The same model without memory-efficient execution, which a tracer cannot follow."""
    if hasattr(options, "lean"):
        # Such methods leave the base frozen, so that a second model can share it.
        plain = build_model(base, dataclasses.replace(options, lean=False), head)
        plain.load_state_dict(model.state_dict())
        set_side_mix(plain, side_mix(model))
        model = plain
    for encoder in (model.image, model.text):
        if isinstance(encoder, AdaptedEncoder):
            encoder.runner.chunk = 0
    return model.requires_grad_(False).eval()


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder that becomes ``output`` when the block ends well; after an error nothing is left of it.

    Raises:
        UserError: ``output`` exists and is not an empty folder.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: already exists; give a new folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".part", dir=output.parent))
    try:
        part.chmod(0o755)
        yield part
        if output.exists():
            output.rmdir()
        part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
