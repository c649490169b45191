"""vlkit: adapt CLIP and T5 to your own images, videos and questions in about the memory of inference."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "load_base"]


def load(folder: str, **options: Any) -> Any:
    """Load an adapter folder and get its task's pipeline; see :func:`vlkit.tasks.load.load`."""
    from vlkit.tasks.load import load as load_pipeline

    return load_pipeline(folder, **options)


def load_base(name: str) -> Any:
    """Load a contrastive base (``tiny``, ``ARCH:TAG``, ``ARCH:FILE``); see :func:`vlkit.encoders.load.load_base`."""
    from vlkit.encoders.load import load_base as load

    return load(name)
