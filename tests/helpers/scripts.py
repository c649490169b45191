"""Run the scripts of tasks/ and data_prep/, in this process for speed or in one of their own for exit codes."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vlkit.cli.config import parse, run

ROOT = Path(__file__).resolve().parents[2]


def load_script(name: str) -> ModuleType:
    """Import a script, e.g. ``tasks/retrieval/train.py``."""
    spec = importlib.util.spec_from_file_location("script_" + name.replace("/", "_").removesuffix(".py"), ROOT / name)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while they are made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def call(name: str, *words: object) -> None:
    """Run a script's main in this process; its errors come out as exceptions."""
    module = load_script(name)
    module.main(parse(module.Config, [str(word) for word in words]))


def refuse(name: str, *words: object) -> str:
    """Run a script in this process as its command line would be; it must refuse. Returns the error line."""
    module, said = load_script(name), io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
        run(module.main, module.Config, [str(word) for word in words])
    lines = [line for line in said.getvalue().splitlines() if line.startswith("error:")]
    assert ended.value.code == 2 and len(lines) == 1 and "Traceback" not in said.getvalue(), said.getvalue()
    return lines[0]


def command(name: str, *words: object) -> list[str]:
    """The command line that runs a script."""
    return [sys.executable, str(ROOT / name), *map(str, words)]


def launch(name: str, *words: object, **options) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own and wait for it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(name, *words), capture_output=True, text=True, timeout=300, env=environment, **options
    )
