"""What the shipped adapters hold, read from their files."""

from __future__ import annotations

from safetensors.torch import load_file

from vlkit.adapters.adapter_files import MODEL_FILE
from vlkit.serving.models import SHIPPED


def trained_parameters(task: str) -> int:
    """Number of trained values of the shipped adapter of a task."""
    return sum(tensor.numel() for tensor in load_file(SHIPPED / task / MODEL_FILE).values())
