"""The two files of an adapter folder, in every format that was ever written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ADAPTER_FORMAT, ADAPTER_VERSION = "vlkit-adapter", 2
CONFIG_FILE, MODEL_FILE = "vlkit_adapter.json", "vlkit_adapter.safetensors"
_NAMES = ((CONFIG_FILE, MODEL_FILE), ("adapter_config.json", "adapter_model.safetensors"))
"""Newest first. Those of format 1 are peft's too, so that other libraries took the folder for a LoRA of peft's."""
READABLE = [name for pair in _NAMES for name in pair]
"""Every name that a file of an adapter may have."""


@dataclass(frozen=True)
class AdapterFiles:
    """Where an adapter's config and tensors lie.

    Attributes:
        config: the JSON file.
        tensors: the safetensors file.
    """

    config: Path
    tensors: Path

    @classmethod
    def find(cls, folder: str | Path) -> AdapterFiles:
        """The files in ``folder``: of the newest format that is there; where a new adapter goes if there is none."""
        pairs = [cls(Path(folder) / config, Path(folder) / tensors) for config, tensors in _NAMES]
        return next((pair for pair in pairs if pair.config.exists()), pairs[0])
