"""Small results of a first run that the second run reads instead of computing them again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any


class Reused:
    """Results in the order in which the first run computed them; the second run takes them in the same order."""

    def __init__(self) -> None:
        self._results: list[Any] = []
        self._is_second = False

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Context of a run: in the first one :func:`reused` stores results, in the second it returns and frees them."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)
            self._is_second = True

    def result(self, compute: Callable[[], Any]) -> Any:
        """See :func:`reused`."""
        if self._is_second:
            return self._results.pop(0)
        self._results.append(compute())
        return self._results[-1]


_current: ContextVar[Reused | None] = ContextVar("results of the current run", default=None)


def reused(compute: Callable[[], Any]) -> Any:
    """``compute()``; in the second run of a :class:`Reused`, its result of the first run.

    For results that are small beside their inputs. ``compute`` must not build a graph.
    """
    place = _current.get()
    return compute() if place is None else place.result(compute)
