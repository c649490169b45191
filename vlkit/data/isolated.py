"""Run calls in separate processes, for work that may crash or hang inside a library, such as decoding videos."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


START_SECONDS = 300.0
"""Time limit of a process's start, in which it imports the function's module: slow on a busy machine."""


@dataclass(frozen=True)
class Lost:
    """A call without a result: its process died, or exceeded the time limit and was killed."""

    reason: str


def isolated(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int, seconds: float
) -> Iterator[tuple[Job, Result | Lost]]:
    """Yield (job, result) as calls of ``function`` finish, in any order.

    Processes are spawned, not forked, so they share no lock or file with the caller. They end when the caller ends,
    even if it is killed. A process that dies or exceeds the time limit loses only its own job and is replaced.

    Args:
        function: a module-level function; it, the jobs and the results must be picklable.
        workers: number of parallel processes, 1 or more.
        seconds: time limit of one call; starting a process has its own limit, :data:`START_SECONDS`.

    Raises:
        Exception: what ``function`` raised; the other calls are cancelled.
    """
    queue = iter(jobs)
    running: list[_Worker[Job]] = []
    idle: list[_Worker[Job]] = []
    try:
        while True:
            while len(running) < workers and (job := next(queue, _NONE)) is not _NONE:
                worker = idle.pop() if idle else _Worker(function)
                worker.begin(job)
                running.append(worker)
            if not running:
                return
            soonest = min(worker.due(seconds) for worker in running)
            wait([worker.pipe for worker in running], max(0.0, soonest - time.monotonic()))
            for worker in list(running):
                result = worker.result(seconds)
                if result is _NONE:
                    continue
                running.remove(worker)
                if isinstance(result, Lost):
                    worker.stop()
                else:
                    idle.append(worker)
                yield worker.job, result
    finally:
        for worker in running + idle:
            worker.stop()


_NONE: Any = object()


class _Worker(Generic[Job]):
    """One process and its current job."""

    job: Job
    since: float

    def __init__(self, function: Callable) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.ready = False
        self.process = context.Process(target=_serve, args=(function, theirs, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the process does

    def begin(self, job: Job) -> None:
        self.job, self.since = job, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it died while idle: the pipe has ended
            self.pipe.send(job)

    def due(self, seconds: float) -> float:
        """When the limit is reached, in seconds of the monotonic clock."""
        return self.since + (seconds if self.ready else START_SECONDS)

    def result(self, seconds: float) -> Any:
        """The call's result, :class:`Lost`, or ``_NONE`` while it runs; re-raises the call's exception."""
        if self.pipe.poll():
            try:
                answer = self.pipe.recv()
            except (EOFError, ConnectionResetError):
                self.process.join()
                return Lost(_death(self.process.exitcode))
            if answer is None:  # it has started: the call's time begins
                self.ready, self.since = True, time.monotonic()
                return _NONE
            value, error = answer
            if error is not None:
                raise error
            return value
        if time.monotonic() >= self.due(seconds):
            return Lost(f"took more than {seconds:g} s" if self.ready else f"did not start in {START_SECONDS:g} s")
        return _NONE

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(function: Callable, pipe: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the caller ends this one
    _die_with(parent)
    with contextlib.suppress(OSError):  # the caller is gone; the next line finds out
        pipe.send(None)
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (function(job), None)
        except BaseException as error:
            answer = (None, _sendable(error))
        try:
            pipe.send(answer)
        except OSError:  # the caller is gone
            return


def _die_with(parent: int) -> None:
    """Let Linux kill this process with its parent; elsewhere it ends after its job, when it finds the pipe closed."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _sendable(error: BaseException) -> Exception:
    try:
        if isinstance(error, Exception) and isinstance(pickle.loads(pickle.dumps(error)), type(error)):
            return error
    except Exception:  # an exception's own pickling may fail in any way
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"crashed its process ({name}" + (", out of memory?)" if -exit_code == signal.SIGKILL else ")")
    return f"ended its process (exit code {exit_code})"
