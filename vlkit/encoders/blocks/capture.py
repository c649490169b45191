"""Capture the arguments that a library's forward passes to its first block, without running the rest.

Libraries build attention masks, position embeddings and rotary tables before their first block, each in its own way
and differently from release to release. Instead of reimplementing that, :func:`inputs_of` runs the library's own
forward and stops it right before the block.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch import nn

# The block to capture, per thread: two threads may run the same model at the same time.
_wanted: ContextVar[nn.Module | None] = ContextVar("wanted block", default=None)


class _Reached(Exception):
    """Carries the inputs of the captured block out of the library's forward."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = args, kwargs


def _stop_if_wanted(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if _wanted.get() is module:
        raise _Reached(args, kwargs)


def watch(block: nn.Module) -> None:
    """Register ``block`` for :func:`inputs_of`; called once, when a tower is staged."""
    if _stop_if_wanted not in block._forward_pre_hooks.values():
        block.register_forward_pre_hook(_stop_if_wanted, with_kwargs=True)


def inputs_of(block: nn.Module, run: Callable[[], Any]) -> dict[str, Any]:
    """Call ``run`` until it reaches ``block`` and return the arguments of ``block``, by name.

    Raises:
        RuntimeError: ``run`` ended without calling ``block`` (which must be registered with :func:`watch`).
    """
    token = _wanted.set(block)
    try:
        run()
    except _Reached as reached:
        args, kwargs = reached.arguments
    else:
        raise RuntimeError(f"the forward ended without calling its first block ({type(block).__name__})")
    finally:
        _wanted.reset(token)
    return _by_name(block, args, kwargs)


def _by_name(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = [
        name
        for name, parameter in inspect.signature(block.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return {**dict(zip(names, args, strict=False)), **kwargs}
