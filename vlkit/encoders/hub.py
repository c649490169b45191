"""Access to model hubs: no requests for known configurations, and no retries without a network."""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import get_session

from vlkit.encoders.families import known_config

# Seconds until a hub that does not answer counts as unreachable.
PATIENCE = 5.0


@contextlib.contextmanager
def hub_access() -> Iterator[None]:
    """Inside the context, libraries fetch files from the hub if it answers, otherwise only from the local cache.

    Without this, a machine without network spends a minute on retries and prints many warnings before it fails.
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
    except Exception:  # the error type differs between releases of huggingface_hub
        return False
    return True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence open_clip's messages on the root logger and its warnings about activations."""

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


@contextlib.contextmanager
def offline_text_cfg(text_cfg: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a copy of an open_clip text configuration that builds its transformers model without the hub.

    open_clip builds such a tower from a name; in the copy, the name is a temporary folder with the known configuration.
    Native text towers and unknown names stay unchanged. The tower starts from random weights.
    """
    text_cfg = copy.deepcopy(text_cfg)
    name = text_cfg.get("hf_model_name")
    config = known_config(name) if name else None
    with tempfile.TemporaryDirectory() as folder:
        if name:
            text_cfg["hf_model_pretrained"] = False
        if config is not None:
            config.save_pretrained(folder)
            text_cfg["hf_model_name"] = folder
        yield text_cfg
