"""``--adapter.start fisher``: initialise LST's side blocks from the base weights that matter most for the task's loss.

The importance of a weight is its squared gradient, summed over single training examples (LST, NeurIPS 2022, section
3.3). During this pass the side networks are bypassed and the base runs with gradient from end to end, which needs the
memory of full fine-tuning on one example. Afterwards the base is unchanged and frozen again.
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
    for (name, tower), importance in zip(towers.items(), found, strict=True):
        _check(name, importance, count)
        prune_(tower.adapter.ladder.blocks, tower.base, importance)


@contextlib.contextmanager
def _bases_alone(model: nn.Module, side: type[Adapter]) -> Iterator[dict[str, AdaptedEncoder]]:
    """Replace each tower that has a side network by its base, and put the model in eval mode.

    Yields:
        The replaced towers, by their names in ``model``.
    """
    parents = {
        f"{prefix}.{name}".lstrip("."): (parent, name)
        for prefix, parent in model.named_modules()
        for name, child in parent.named_children()
        if isinstance(child, AdaptedEncoder) and isinstance(child.adapter, side)
    }
    if not parents:
        raise UserError("--adapter.start fisher: the model has no side network; use it with --adapter.kind lst")
    towers = {path: getattr(*place) for path, place in parents.items()}
    training = model.training
    for path, place in parents.items():
        setattr(*place, TunedEncoder(towers[path].base))
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


def _check(tower: str, importance: Importance, count: int) -> None:
    total = torch.stack([value.sum() for value in importance.values()]).sum().item()
    if 0 < total < float("inf"):
        return
    if total == 0:
        what, fix = f"no gradient of {count} example(s) reaches this tower", "train on more examples"
    else:
        what, fix = "gradients are not finite", "use --precision 32-true"
    raise UserError(f"--adapter.start fisher: {tower}: {what}; {fix}, or use --adapter.start magnitude")
