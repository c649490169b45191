"""Asking model hubs politely: no retries against a network that is not there, no running commentary on the screen."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.utils import get_session

# Seconds until a hub that does not answer counts as out of reach.
PATIENCE = 5.0


@contextlib.contextmanager
def hub_access() -> Iterator[None]:
    """Within it, what libraries fetch comes from the hub if that answers, else from the local cache alone.

    Without this, a machine that has no network spends a minute on retries, and a page of warnings, before it says so.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _hub_answers()
    try:
        with quiet():
            yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _hub_answers() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # the session's own errors, whose type differs between releases of huggingface_hub
        return False
    return True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep open_clip's commentary on the root logger, and its advice on activations, off the screen."""

    def not_open_clip(record: logging.LogRecord) -> bool:
        return "open_clip" not in record.pathname

    root = logging.getLogger()
    root.addFilter(not_open_clip)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="QuickGELU mismatch")
            yield
    finally:
        root.removeFilter(not_open_clip)
