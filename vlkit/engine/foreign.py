"""Adapter folders may come from anyone, or be damaged: their configs are checked before a model is built from them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vlkit.adapters.adapter_files import AdapterFiles
from vlkit.errors import UserError

LARGEST_SIDE, MOST_FRAMES, LONGEST_TEXT = 4096, 10_000, 8192
"""Largest image side in pixels, most frames per video, and most tokens per text, that an adapter may ask for."""
SPARE = 2**24
"""Tensor elements (64 MiB) that building a model may allocate beyond a multiple of the elements in its weights."""


def config_problem(config: Mapping[str, Any]) -> str | None:
    """The first field of ``vlkit_adapter.json`` that is missing or has the wrong type; None if all are right."""
    base, adapters, preprocess = (cast(Any, config.get(key)) for key in ("base", "adapters", "preprocess"))
    for key in ("base", "adapters"):
        section = config.get(key)
        if not isinstance(section, dict) or not all(isinstance(part, dict) for part in section.values()):
            return key
        if not {"image", "text"} & section.keys():
            return f"{key}.image"
    for tower, about in base.items():
        if not all(isinstance(about.get(key), str) for key in ("load", "name", "fingerprint")):
            return f"base.{tower}"
        if not _count_or_none(about.get("image_size"), LARGEST_SIDE):
            return f"base.{tower}.image_size"
        if not _count_or_none(about.get("context_length"), LONGEST_TEXT):
            return f"base.{tower}.context_length"
    if not all(isinstance(options.get("kind"), str) for options in adapters.values()):
        return "adapters"
    for key in ("head", "preprocess", "metrics", "search"):
        if not isinstance(config.get(key, {}), dict):
            return key
    mix = config.get("mix", 1.0)
    if isinstance(mix, bool) or not isinstance(mix, int | float) or not math.isfinite(mix):
        return "mix"
    if not _count_or_none((preprocess or {}).get("image_size"), LARGEST_SIDE):
        return "preprocess.image_size"
    if not _count_or_none((preprocess or {}).get("frames"), MOST_FRAMES):
        return "preprocess.frames"
    return None


@contextlib.contextmanager
def built_for(tensors: Mapping[str, Tensor], folder: str | Path, *frozen: nn.Module) -> Iterator[None]:
    """Build a model from an adapter's config within this block: wrong options raise one line and allocate no memory.

    Args:
        tensors: the trained tensors. The model cannot be much larger than these and the base.
        folder: the adapter's folder, for messages.
        frozen: the towers of the base.

    Raises:
        UserError: the options are invalid, or describe a model far larger than the saved weights.
    """
    held = sum(tensor.numel() for tensor in tensors.values())
    held += sum(parameter.numel() for module in frozen for parameter in module.parameters())
    file = AdapterFiles.find(folder).config
    try:
        with _Limit(4 * held + SPARE):
            yield
    except UserError:
        raise
    except _TooLarge:
        raise UserError(f"{file}: describes a model far larger than its weights; copy both files") from None
    except Exception as error:  # options of any type can raise any error while the model is built
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UserError(f"{file}: its options do not fit ({reason}); copy both files, or update vlkit") from error


def _count_or_none(value: Any, most: int) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most)


class _TooLarge(Exception):
    """More elements were requested than allowed."""


class _Limit(TorchDispatchMode):
    """Counts the elements of new tensors, and raises before the limit is passed."""

    FACTORIES = ("empty", "zeros", "ones", "full", "rand", "randn", "arange", "eye", "empty_strided", "linspace")

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in self.FACTORIES and args:
            size = args[0] if isinstance(args[0], list | tuple | torch.Size) else ()
            count = 1
            for side in size:
                count *= side
            self.left -= count
            if self.left < 0:
                raise _TooLarge
        return function(*args, **(kwargs or {}))
