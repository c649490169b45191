"""Load a saved adapter: ``vlkit.load(folder)`` returns the task's pipeline.

Each task in :data:`vlkit.tasks.registry.TASKS` defines how to attach an adapter to its base and build the pipeline.
Pipelines need no web server and are safe to call from several threads.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vlkit.adapters.mix import Mix, Trained
from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.engine.checkpoint import load_adapter
from vlkit.engine.distributed import make_fabric
from vlkit.errors import UserError
from vlkit.tasks.classification.black_box import CONFIG as COORDINATOR
from vlkit.tasks.classification.prompted import open_prompted
from vlkit.tasks.hub import download, is_repository
from vlkit.tasks.registry import TASKS


def load(
    folder: str | Path,
    device: str = "auto",
    base: ClipBase | None = None,
    text_base: TextBase | None = None,
    task: str | None = None,
    mix: float = 1.0,
    mix_beta: float = 0.0,
) -> Any:
    """Load an adapter folder and attach it to its base.

    Args:
        folder: a run folder, any folder with ``vlkit_adapter.json`` and ``vlkit_adapter.safetensors``, or an adapter
            on the Hugging Face hub: ``org/name`` or ``org/name@revision``; or the folder of a run of
            ``tasks/classification/black_box.py``, which asks its black box again.
        device: auto, cpu or cuda.
        base: an already loaded base; methods that leave it frozen can share one. LoRA, BitFit and full fine-tuning
            change it: load one for each such adapter.
        text_base: the same, for tasks with a separate text model.
        task: the task that the caller requires; None = any.
        mix: how much of the adapter to apply: 0 = the base (with the trained head), 1 = as trained.
        mix_beta: added to ``mix`` in proportion to the depth of a block, for methods that train the base (LiNeS).

    Returns:
        The task's pipeline, such as :class:`vlkit.tasks.retrieval.pipeline.RetrievalPipeline`.

    Raises:
        UserError: the folder holds no adapter, the base is not the one it was trained on, or weights do not fit.
    """
    if is_repository(folder):
        folder = download(str(folder))
    # The folder's name appears in messages and beside results; resolving gives "." and ".." a name too.
    folder = Path(folder) if Path(folder).name not in ("", "..") else Path(os.path.abspath(folder))
    if (folder / COORDINATOR).is_file():
        if task not in (None, "classification"):
            raise UserError(f"{folder}: a coordinator for classification; task {task!r} is needed here")
        if mix_beta:
            raise UserError("--mix_beta: a black box shows no blocks to scale; use --mix alone, a factor on the prompt")
        return open_prompted(folder, device, mix)
    config, tensors = load_adapter(folder)
    found = config.get("task")
    if found not in TASKS:
        raise UserError(f"{folder}: adapter for task {found!r}; this vlkit knows {', '.join(TASKS)}")
    if task not in (None, found):
        raise UserError(f"{folder}: adapter for task {found!r}; task {task!r} is needed here")
    TASKS[found].check_towers(config, folder)
    tensors = Trained(tensors, Mix(mix, mix_beta, config.get("mix", 1.0)))
    return TASKS[found].open_adapter(config, tensors, folder, make_fabric(device), base, text_base)
