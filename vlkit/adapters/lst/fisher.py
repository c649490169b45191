"""``--adapter.start fisher``: LST's side blocks start from the weights of the base that the task's loss moves most.

The importance of a weight is its squared gradient, summed over training examples that pass one by one (LST, NeurIPS
2022, section 3.3). For that pass alone the side networks step aside and the base runs with gradient from end to end, in
the memory of full fine-tuning on one example. Behind it the base is as it was, and frozen.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.lst.method import LstAdapter
from vlkit.adapters.lst.pruning import Importance, fisher_of_towers, prune_
from vlkit.adapters.tuning import TunedEncoder
from vlkit.encoders.staged import in_weights_format
from vlkit.engine.checkpoint import STATE_FILE
from vlkit.engine.fit import RunConfig, workers_for
from vlkit.engine.loader import EpochLoader, Examples
from vlkit.engine.progress import ProgressBar, peak_memory_bytes
from vlkit.engine.run_folder import RunFolder
from vlkit.errors import UserError

log = logging.getLogger(__name__)

Forward = Callable[..., Any]
LossesOf = Callable[[Forward, Any], Iterable[Tensor]]
"""The model's forward and a batch on the device -> a loss for each example of the batch."""


def fisher_due(adapter: Any, folder: RunFolder) -> bool:
    """Whether a run has to make its own Fisher start: it is asked for, and no checkpoint holds what came of it."""
    return getattr(adapter, "start", None) == "fisher" and not (folder.checkpoint / STATE_FILE).exists()


def start_from_fisher(
    model: nn.Module,
    dataset: Examples,
    collate: Callable[[list[Any]], Any],
    losses_of: LossesOf,
    config: RunConfig,
    fabric: Fabric,
    batch_size: int = 1,
) -> None:
    """Start every side network of ``model`` anew, from what the first training examples say.

    The examples are a function of the seed alone. Processes all take the same ones, and
    :func:`vlkit.engine.fit.fit` gives them the weights of process 0. Gradients are those of the weights' own number
    format: autocast is off.

    Args:
        model: on its device, not wrapped by Fabric; its side networks are changed, nothing else.
        dataset: training examples themselves, not their cached taps.
        collate: examples -> batch.
        losses_of: see :data:`LossesOf`.
        config: the run's flags; ``adapter.fisher_examples`` says how many, at most the examples of one epoch.
        fabric: the run's Fabric.
        batch_size: examples that ``losses_of`` sees at once.

    Raises:
        UserError: the model has no side network, or its towers have no gradient, or none that is finite.
    """
    loader = EpochLoader(dataset, batch_size, config.seed, collate=collate, workers=workers_for(config, fabric))
    count = min(config.adapter.fisher_examples, len(loader) * loader.batch_size)
    log.info("fisher start: squared gradients of %d training examples, one by one through the whole base", count)

    def losses() -> Iterator[Tensor]:
        began = time.monotonic()
        with ProgressBar(count, shown=fabric.is_global_zero, label="fisher start") as bar:
            batches = loader.batches(0, -(-count // loader.batch_size))
            every = (loss for batch in batches for loss in losses_of(forward, fabric.to_device(batch)))
            for done, loss in enumerate(islice(every, count), 1):
                yield loss
                speed, memory = done / (time.monotonic() - began), peak_memory_bytes(fabric.device)
                bar.show(done, f"{speed:.1f} examples/s  {memory / 2**20:.0f} MiB")
        log.info("fisher start: took %.1f s", time.monotonic() - began)

    with _bases_alone(model) as towers:
        forward = _in_format_of_weights(model, fabric)
        found = fisher_of_towers([tower.base for tower in towers.values()], losses())
    for (name, tower), importance in zip(towers.items(), found, strict=True):
        _check(name, importance, count, config.precision)
        prune_(tower.adapter.ladder.blocks, tower.base, importance)


@contextlib.contextmanager
def _bases_alone(model: nn.Module) -> Iterator[dict[str, AdaptedEncoder]]:
    """Put the base itself in the place of each tower with a side network, and the model in eval mode.

    Yields:
        The towers that stepped aside, by their names in ``model``.
    """
    parents = {
        f"{prefix}.{name}".lstrip("."): (parent, name)
        for prefix, parent in model.named_modules()
        for name, child in parent.named_children()
        if isinstance(child, AdaptedEncoder) and isinstance(child.adapter, LstAdapter)
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


def _in_format_of_weights(model: nn.Module, fabric: Fabric) -> Forward:
    """What Fabric's wrapper does around a forward, but for autocast, whose small gradients float16 would lose."""

    def forward(*inputs: Any) -> Any:
        cast = [in_weights_format(model, x) for x in inputs]
        with fabric.autocast(), torch.autocast(fabric.device.type, enabled=False):
            found = model(*cast)
        return fabric.strategy.precision.convert_output(found)

    return forward


def _check(tower: str, importance: Importance, count: int, precision: str) -> None:
    total = torch.stack([value.sum() for value in importance.values()]).sum().item()
    if total > 0 and total < float("inf"):
        return
    if total == 0:
        what, mend = f"no gradient of {count} example(s) reaches this tower", "train on more examples"
    else:
        what, mend = f"gradients in --precision {precision} are not finite", "use --precision 32-true"
    raise UserError(f"--adapter.start fisher: {tower}: {what}; {mend}, or use --adapter.start magnitude")
