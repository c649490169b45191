"""The interface of a tracker (TensorBoard, a web service, a test) that follows a run in addition to ``log.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Logger(Protocol):
    """Two methods, called only in process 0. See :meth:`vlkit.engine.run.Run.open`."""

    def log(self, values: Mapping[str, Any]) -> None:
        """Receive one line of the log: ``step``, ``epoch`` and numbers; an evaluation also has ``split``."""
        ...

    def finish(self, report: Mapping[str, Any]) -> None:
        """Receive the final numbers, as in ``metrics.json``. This is the last call."""
        ...
