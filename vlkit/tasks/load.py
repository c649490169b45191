"""Load what training saved and use it: ``vlkit.load(folder)`` gives the task's pipeline.

Each task says in :data:`vlkit.tasks.registry.TASKS` how to put an adapter on its base and make the pipeline. Pipelines
need no web server and are safe to call from several threads.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.engine.checkpoint import load_adapter
from vlkit.engine.distributed import make_fabric
from vlkit.errors import UserError
from vlkit.tasks.registry import TASKS


def load(
    folder: str | Path,
    device: str = "auto",
    base: ClipBase | None = None,
    text_base: TextBase | None = None,
    task: str | None = None,
) -> Any:
    """Load an adapter folder onto its base.

    Args:
        folder: a run folder, or any folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        device: auto, cpu or cuda.
        base: the base if it is loaded already; methods that leave it frozen can share one. LoRA, BitFit and full
            fine-tuning change it: load one for each such adapter.
        text_base: the same, for tasks with a text model of its own.
        task: the task the caller can use; None = any.

    Returns:
        The task's pipeline, such as :class:`vlkit.tasks.retrieval.pipeline.RetrievalPipeline`.

    Raises:
        UserError: no adapter there, another base than it was trained on, or weights that do not fit.
    """
    # The name of a folder stands in messages and beside results: "." and ".." have one, too.
    folder = Path(folder) if Path(folder).name not in ("", "..") else Path(os.path.abspath(folder))
    config, tensors = load_adapter(folder)
    found = config.get("task")
    if found not in TASKS:
        raise UserError(f"{folder}: adapter for task {found!r}; this vlkit serves {', '.join(TASKS)}")
    if task not in (None, found):
        raise UserError(f"{folder}: adapter for task {found!r}; one for {task!r} is needed here")
    return TASKS[found].open_adapter(config, tensors, folder, make_fabric(device), base, text_base)
