"""Find out what a library's forward hands to its first block, without running the rest.

Libraries build attention masks, position embeddings and rotary tables on the way to their first block, each in its own
manner and differently from release to release. Instead of redoing that, :func:`inputs_of` runs the library's own
forward and stops it at the door of the block.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch import nn

# The block whose inputs are wanted, in this thread and no other: two threads may run one model at the same time.
_wanted: ContextVar[nn.Module | None] = ContextVar("wanted block", default=None)


class _Reached(Exception):
    """Carries the inputs of the wanted block up and out of the library's forward."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = args, kwargs


def _stop_if_wanted(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if _wanted.get() is module:
        raise _Reached(args, kwargs)


def watch(block: nn.Module) -> None:
    """Make ``block`` stoppable by :func:`inputs_of`; to be called once, when a tower is staged."""
    if _stop_if_wanted not in block._forward_pre_hooks.values():
        block.register_forward_pre_hook(_stop_if_wanted, with_kwargs=True)


def inputs_of(block: nn.Module, run: Callable[[], Any]) -> dict[str, Any]:
    """Call ``run`` until it reaches ``block`` and return the arguments ``block`` would get, by name.

    Raises:
        RuntimeError: ``run`` ended without calling ``block`` (which must be watched, see :func:`watch`).
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
