"""The progress bar of a running script: loss, speed and memory."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time

import torch

from vlkit.cli.show import BarColumn, Console, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory in bytes: allocator peak since the last reset on CUDA, else peak resident size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


class ProgressBar:
    """Step, loss, speed and memory on stderr: a bar on a terminal, an occasional line in a file.

    Args:
        steps: total number of steps.
        shown: False = print nothing.
        label: short name of the work.
    """

    LINE_SECONDS = 30.0

    def __init__(self, steps: int, shown: bool, label: str = "train") -> None:
        console = Console(stderr=True)
        self._lines = shown and not console.is_terminal
        self._line_at = time.monotonic()
        self._steps = steps
        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
        # Without a refresh thread: a forked worker would inherit its locks.
        self._progress = Progress(
            *columns,
            TimeRemainingColumn(),
            console=console,
            transient=True,
            auto_refresh=False,
            disable=not shown or self._lines,
        )
        self._task = self._progress.add_task(label, total=steps, text="")
        self._shown_at = -math.inf

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def pause(self) -> None:
        """Clear the bar, so that an evaluation may show its own."""
        self._progress.stop()

    def go_on(self) -> None:
        """Show the bar again."""
        self._progress.start()

    def advance(self, step: int, loss: float, speed: float, memory: int) -> None:
        """Show the run's progress."""
        self.show(step, f"loss {loss:.4f}  {speed:.1f} examples/s  {memory / 2**20:.0f} MiB")

    def show(self, step: int, text: str) -> None:
        """Show that ``step`` steps are done, with a text beside the bar."""
        self._progress.update(self._task, completed=step, text=text)
        if time.monotonic() - self._shown_at > 0.2:
            self._progress.refresh()
            self._shown_at = time.monotonic()
        if self._lines and time.monotonic() - self._line_at > self.LINE_SECONDS:
            log.info("step %d of %d: %s", step, self._steps, text)
            self._line_at = time.monotonic()
