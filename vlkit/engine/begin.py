"""Begin a run with the trained weights of another adapter (``--init``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlkit.adapters.base import trained_state
from vlkit.engine.checkpoint import check_fingerprint, load_adapter, unwrap
from vlkit.errors import UserError, some

log = logging.getLogger(__name__)

WRAPPERS = ("towers.",)
"""Prefixes that differ between tasks which hold the same towers."""


@torch.no_grad()
def begin_with(model: nn.Module, folder: Path, base: Mapping[str, Mapping[str, Any]]) -> None:
    """Copy the parts of an adapter that the model has too; its other weights stay as they are.

    A part (``image.adapter``, ``fusion.layers``, …) is taken whole or not at all: names and shapes must be the same. So
    an adapter of retrieval can begin a run of another task with the same method, options and base.

    Args:
        model: the new model.
        folder: adapter or run folder.
        base: towers of the loaded base, with their fingerprints.

    Raises:
        UserError: no adapter is there, it was trained on another base, or it has no part of this model.
    """
    config, tensors = load_adapter(folder)
    for tower in config["base"].keys() & base.keys():
        check_fingerprint(config, base, tower, folder)
    ours, theirs = _parts(trained_state(unwrap(model))), _parts(tensors)
    taken = [part for part, own in ours.items() if _shapes(own) == _shapes(theirs.get(part, {}))]
    if not taken:
        raise UserError(
            f"--init {folder}: none of its weights fit; this model trains {some(sorted(ours))}, the adapter has "
            f"{some(sorted(theirs))}; give the same --adapter options as those in its vlkit_adapter.json"
        )
    for part in taken:
        for name, tensor in ours[part].items():
            tensor.copy_(theirs[part][name])
    new = [part for part in ours if part not in taken]
    log.info("--init %s: begins with its %s%s", folder, some(taken, 9), f"; new: {some(new, 9)}" if new else "")


def _parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors by part, that is by the first two words of the module that owns them."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        for wrapper in WRAPPERS:
            name = name.removeprefix(wrapper)
        module = name.split(".")[:-1] or [name]
        parts.setdefault(".".join(module[:2]), {})[name] = tensor
    return parts


def _shapes(tensors: Mapping[str, Tensor]) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in tensors.items()}
