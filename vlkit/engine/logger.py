"""What a tracker (TensorBoard, a web service, a test) implements to follow a run beside its own ``log.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Logger(Protocol):
    """Two methods; both are called in process 0 alone. See :meth:`vlkit.engine.run.Run.open`."""

    def log(self, values: Mapping[str, Any]) -> None:
        """Take one line of the log: ``step``, ``epoch`` and numbers; an evaluation has ``split`` too."""
        ...

    def finish(self, report: Mapping[str, Any]) -> None:
        """Take the final numbers, as ``metrics.json`` holds them. Nothing follows."""
        ...
