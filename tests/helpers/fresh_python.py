"""A script in a process of its own: what is imported there, and what is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import vlkit

ROOT = Path(vlkit.__file__).parent.parent


def python(script: str) -> None:
    """Run a script; it must end well."""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
