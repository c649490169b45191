"""``--adapter.start fisher``: initialise LST's side blocks from the base weights that matter most for the task's loss.

The importance of a weight is its squared gradient, summed over single training examples (LST, NeurIPS 2022, section
3.3). During this pass the side networks are bypassed and the base runs with gradient from end to end, which needs the
memory of full fine-tuning on one example. Afterwards the base is unchanged and frozen again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder, Adapter
from vlkit.adapters.lst.pruning import Importance, fisher_of_towers, prune_
from vlkit.adapters.tuning import TunedEncoder, TunedReader, TunedWriter
from vlkit.encoders.staged import StagedEncoder
from vlkit.encoders.towers.t5 import T5Decoder
from vlkit.errors import UserError

log = logging.getLogger(__name__)


def start_from_fisher(model: nn.Module, side: type[Adapter], losses: Iterable[Tensor], count: int) -> None:
    """Reinitialise every side network of ``model`` from the gradients of training examples.

    Args:
        model: on its device; only its side networks are changed.
        side: the class of the side networks; they have a ``ladder``.
        losses: a generator that runs ``model`` on one example at a time and yields its loss, a scalar with gradient.
        count: number of examples, for messages.

    Raises:
        UserError: the model has no side network, or a tower gets no gradient or a gradient that is not finite.
    """
    log.info("fisher start: squared gradients of %d training examples, one by one through the whole base", count)
    with _bases_alone(model, side) as towers:
        found = fisher_of_towers([tower.base for tower in towers.values()], losses)
    units = None
    for (name, tower), importance in zip(towers.items(), found, strict=True):
        _check(name, importance, count)
        if isinstance(tower, AdaptedEncoder):
            prune_(tower.adapter.ladder.blocks, tower.base, importance)
        else:  # of an encoder-decoder; the decoder, which comes last, reads the units that the encoder keeps
            memory_units = units if isinstance(tower.base, T5Decoder) else None
            units = prune_(tower.ladder.blocks, tower.base, importance, memory_units)


@contextlib.contextmanager
def _bases_alone(model: nn.Module, side: type[Adapter]) -> Iterator[dict[str, Any]]:
    """Replace each tower that has a side network by its base, and put the model in eval mode.

    Yields:
        The replaced towers, by their names in ``model``.
    """
    parents = {
        f"{prefix}.{name}".lstrip("."): (parent, name)
        for prefix, parent in model.named_modules()
        for name, child in parent.named_children()
        if _alone(child, side) is not None
    }
    if not parents:
        raise UserError("--adapter.start fisher: the model has no side network; use it with --adapter.kind lst")
    towers = {path: getattr(*place) for path, place in parents.items()}
    training = model.training
    for path, place in parents.items():
        setattr(*place, _alone(towers[path], side))
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.train()  # cuDNN cannot run their backward in eval mode
    try:
        yield towers
    finally:
        for path, place in parents.items():
            setattr(*place, towers[path])
        model.train(training)


def _alone(tower: nn.Module, side: type[Adapter]) -> TunedEncoder | None:
    """The base of a tower or stack with a side network, to stand in its place; None: it has no side network."""
    if isinstance(tower, AdaptedEncoder):
        return TunedEncoder(tower.base) if isinstance(tower.adapter, side) else None
    if not hasattr(tower, "ladder") or not isinstance(base := getattr(tower, "base", None), StagedEncoder):
        return None
    return TunedWriter(base) if isinstance(base, T5Decoder) else TunedReader(base)


def _check(tower: str, importance: Importance, count: int) -> None:
    total = torch.stack([value.sum() for value in importance.values()]).sum().item()
    if 0 < total < float("inf"):
        return
    if total == 0:
        what, fix = f"no gradient of {count} example(s) reaches this tower", "train on more examples"
    else:
        what, fix = "gradients are not finite", "use --precision 32-true"
    raise UserError(f"--adapter.start fisher: {tower}: {what}; {fix}, or use --adapter.start magnitude")
