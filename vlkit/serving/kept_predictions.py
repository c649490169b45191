"""Predictions of memory: one at a time, and kept in the cache folder."""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vlkit.errors import UserError
from vlkit.files import cache_folder, read_json, write_json
from vlkit.memory.step import StepMemory

log = logging.getLogger(__name__)

_one_at_a_time = threading.Lock()
ACTIVE_SHARE = 0.25
"""Share of a tap's values that SHERL in the joint space saves. It depends on the data; this one was measured with the
embedded base and untrained weights (``tasks/memory.py`` with and without ``--estimate true --active_share 0.25``)."""


def kept_prediction(key: Mapping[str, Any], predict: Callable[[], StepMemory]) -> StepMemory:
    """What ``predict`` returns, or returned before for the same key and the same code.

    Args:
        key: JSON values that determine the prediction.
        predict: makes it, within :func:`predicting`; takes seconds.
    """
    text = json.dumps({**key, "code": _code()}, sort_keys=True, default=str)
    file = cache_folder().absolute() / "memory" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
    try:
        return StepMemory(**read_json(file))
    except (UserError, OSError, TypeError):  # missing or damaged: predict again
        memory = predict()
    try:
        write_json(file, asdict(memory))
    except OSError as error:
        log.warning("%s: cannot write (%s); it will be predicted again", file, error.strerror or error)
    return memory


@contextmanager
def predicting() -> Iterator[None]:
    """One prediction at a time, to limit the memory of a busy server, and without garbage collection: it scans
    everything that a server has loaded and frees nothing.
    """
    with _one_at_a_time:
        was = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if was:
                gc.enable()


@functools.lru_cache(maxsize=1)
def _code() -> str:
    """Hash of what a prediction depends on besides its key: torch, and this package's code."""
    digest = hashlib.sha256(torch.__version__.encode())
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
