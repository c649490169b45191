"""vlkit: adapt CLIP and T5 to your own images, videos and questions in about the memory of inference."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "load_base", "push_to_hub"]


def load(folder: str, **options: Any) -> Any:
    """Load an adapter (folder, or ``org/name`` on the hub) as its task's pipeline: :func:`vlkit.tasks.load.load`."""
    from vlkit.tasks.load import load as load_pipeline

    return load_pipeline(folder, **options)


def load_base(name: str) -> Any:
    """Load a contrastive base (``tiny``, ``ARCH:TAG``, ``ARCH:FILE``); see :func:`vlkit.encoders.load.load_base`."""
    from vlkit.encoders.load import load_base as load

    return load(name)


def push_to_hub(folder: str, repository: str, **options: Any) -> str:
    """Publish an adapter folder on the Hugging Face hub; see :func:`vlkit.tasks.hub.push_to_hub`."""
    from vlkit.tasks.hub import push_to_hub as push

    return push(folder, repository, **options)
