"""``--adapter.start fisher``: LST's side blocks start from the weights of the base that the task's loss moves most.

The importance of a weight is its squared gradient, summed over training examples that pass one by one (LST, NeurIPS
2022, section 3.3). For that pass alone the side networks step aside and the base runs with gradient from end to end, in
the memory of full fine-tuning on one example. Behind it the base is as it was, and frozen.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder, Adapter
from vlkit.adapters.lst.pruning import Importance, fisher_of_towers, prune_
from vlkit.adapters.tuning import TunedEncoder
from vlkit.errors import UserError

log = logging.getLogger(__name__)


def start_from_fisher(model: nn.Module, side: type[Adapter], losses: Iterable[Tensor], count: int) -> None:
    """Start every side network of ``model`` anew, from what training examples say.

    Args:
        model: on its device; its side networks are changed, nothing else.
        side: the class of the side networks; they have a ``ladder``.
        losses: a generator that runs ``model`` on one example at a time and yields its loss, a scalar with gradient.
        count: how many there are, for messages.

    Raises:
        UserError: the model has no side network, or its towers have no gradient, or none that is finite.
    """
    log.info("fisher start: squared gradients of %d training examples, one by one through the whole base", count)
    with _bases_alone(model, side) as towers:
        found = fisher_of_towers([tower.base for tower in towers.values()], losses)
    for (name, tower), importance in zip(towers.items(), found, strict=True):
        _check(name, importance, count)
        prune_(tower.adapter.ladder.blocks, tower.base, importance)


@contextlib.contextmanager
def _bases_alone(model: nn.Module, side: type[Adapter]) -> Iterator[dict[str, AdaptedEncoder]]:
    """Put the base itself in the place of each tower with a side network, and the model in eval mode.

    Yields:
        The towers that stepped aside, by their names in ``model``.
    """
    parents = {
        f"{prefix}.{name}".lstrip("."): (parent, name)
        for prefix, parent in model.named_modules()
        for name, child in parent.named_children()
        if isinstance(child, AdaptedEncoder) and isinstance(child.adapter, side)
    }
    if not parents:
        raise UserError("--adapter.start fisher: there is no side network to start; use it with --adapter.kind lst")
    towers = {path: getattr(*place) for path, place in parents.items()}
    training = model.training
    for path, place in parents.items():
        setattr(*place, TunedEncoder(towers[path].base))
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.train()  # cuDNN has no backward of these in eval mode
    try:
        yield towers
    finally:
        for path, place in parents.items():
            setattr(*place, towers[path])
        model.train(training)


def _check(tower: str, importance: Importance, count: int) -> None:
    total = torch.stack([value.sum() for value in importance.values()]).sum().item()
    if 0 < total < float("inf"):
        return
    if total == 0:
        what, fix = f"no gradient of {count} example(s) reaches this tower", "train on more examples"
    else:
        what, fix = "gradients are not finite", "use --precision 32-true"
    raise UserError(f"--adapter.start fisher: {tower}: {what}; {fix}, or use --adapter.start magnitude")
