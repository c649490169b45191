"""Batching of concurrent calls: calls that arrive while a batch computes form the next batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

X = TypeVar("X")
Y = TypeVar("Y")


class _Call(Generic[X, Y]):
    def __init__(self, items: list[X]) -> None:
        self.items = items
        self.results: list[Y] | None = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.results is not None or self.error is not None


class Batching(Generic[X, Y]):
    """Wrap ``run`` so that any number of threads may call it, one batch at a time.

    It starts no thread and adds no delay: a call that finds the function idle runs at once. Calls that had to wait run
    together, in the thread of the first. If a batch of several calls fails, each call is run alone, so that only the
    faulty one sees the error.

    Args:
        run: list of n items -> sequence of n results; called by one thread at a time.
        limit: items per batch; a call with more items is its own batch.
    """

    def __init__(self, run: Callable[[list[X]], Sequence[Y]], limit: int = 64) -> None:
        self._run, self._limit = run, limit
        self._waiting: deque[_Call[X, Y]] = deque()
        self._turn = threading.Lock()

    def __call__(self, items: Sequence[X]) -> list[Y]:
        """n items -> their n results, in order. Raises what ``run`` raises for these items."""
        call: _Call[X, Y] = _Call(list(items))
        self._waiting.append(call)
        with self._turn:
            while not call.done:
                self._run_together(self._next_batch())
        if call.error is not None:
            raise call.error
        assert call.results is not None  # done
        return call.results

    def _next_batch(self) -> list[_Call[X, Y]]:
        """The longest waiting calls that fit in a batch, at least one."""
        batch = [self._waiting.popleft()]
        count = len(batch[0].items)
        while self._waiting and count + len(self._waiting[0].items) <= self._limit:
            batch.append(self._waiting.popleft())
            count += len(batch[-1].items)
        return batch

    def _run_together(self, batch: list[_Call[X, Y]]) -> None:
        try:
            results = list(self._run([item for call in batch for item in call.items]))
        except Exception as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            for call in batch:
                self._run_together([call])
            return
        except BaseException as error:  # Ctrl-C in the running thread: no other call may wait forever
            for call in batch:
                call.error = error
            raise
        start = 0
        for call in batch:
            call.results = results[start : start + len(call.items)]
            start += len(call.items)
