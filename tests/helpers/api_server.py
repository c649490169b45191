"""The API server in a process of its own, for tests that end it by a signal."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from vlkit.cli.config import run


def launch(arguments: list[str], said: str) -> None:
    """Be ``tasks/retrieval/serve.py``, with both streams in the file ``said``."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    script = Path(__file__).parents[2] / "tasks" / "retrieval" / "serve.py"
    spec = importlib.util.spec_from_file_location("script_serve", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["script_serve"] = module
    spec.loader.exec_module(module)
    run(module.main, module.Config, arguments)
