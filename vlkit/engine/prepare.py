"""Training examples shown to a method before the first step (LST's Fisher initialisation)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from vlkit.adapters.facts import MethodOptions
from vlkit.encoders.staged import in_weights_format
from vlkit.engine.checkpoint import STATE_FILE
from vlkit.engine.distributed import alone
from vlkit.engine.loader import EpochLoader, Examples, workers_for
from vlkit.engine.progress import ProgressBar, peak_memory_bytes
from vlkit.engine.run import Forward, LossOf, Run

log = logging.getLogger(__name__)

Apart = Callable[[LossOf, Forward, Any], Iterable[Tensor]]
"""(a script's loss, the model's forward, a batch) -> one loss per example of the batch."""


def whole(loss_of: LossOf, forward: Forward, batch: Any) -> list[Tensor]:
    """The loss of a batch with a single example."""
    loss = loss_of(forward, batch, 0.0)
    return [loss["loss"] if isinstance(loss, Mapping) else loss]


def prepare(
    run: Run,
    adapter: MethodOptions,
    model: nn.Module,
    examples: Callable[[], Examples],
    collate: Callable[[list[Any]], Any],
    loss_of: LossOf,
    batch_size: int = 1,
    apart: Apart = whole,
) -> None:
    """Show the first training examples to a method that asks for them, unless a checkpoint already holds the result.

    The examples depend on the seed alone and are the same on every process. Autocast is off, so gradients have the
    weights' own number format.

    Args:
        run: the run.
        adapter: the method's options; ``examples_wanted`` says how many examples to show to ``prepare``.
        model: the model on its device, not wrapped by Fabric.
        examples: returns the training examples themselves, not their cached taps.
        collate: examples -> batch.
        loss_of: the script's loss.
        batch_size: examples per call of ``apart``.
        apart: splits the loss of a batch into one loss per example; default: a batch is one example.
    """
    wanted = adapter.examples_wanted
    if not wanted or (run.folder.checkpoint / STATE_FILE).exists():
        return
    workers = workers_for(run.config, run.fabric)
    loader = EpochLoader(examples(), batch_size, run.config.seed, collate=collate, workers=workers)
    count = min(wanted, len(loader) * loader.batch_size)
    forward = _in_format_of_weights(run, model)

    def loss_alone(forward: Forward, batch: Any, epoch: float) -> Tensor | Mapping[str, Tensor]:
        with alone():  # every process shows the same examples: gathered, each would be its own negative
            return loss_of(forward, batch, epoch)

    def losses() -> Iterator[Tensor]:
        began = time.monotonic()
        with ProgressBar(count, shown=run.fabric.is_global_zero, label="prepare") as bar:
            batches = loader.batches(0, -(-count // loader.batch_size))
            every = (loss for batch in batches for loss in apart(loss_alone, forward, run.fabric.to_device(batch)))
            for done, loss in enumerate(islice(every, count), 1):
                yield loss
                speed, memory = done / (time.monotonic() - began), peak_memory_bytes(run.fabric.device)
                bar.show(done, f"{speed:.1f} examples/s  {memory / 2**20:.0f} MiB")
        log.info("%d training examples shown to the method in %.1f s", count, time.monotonic() - began)

    adapter.prepare(model, losses(), count)


def _in_format_of_weights(run: Run, model: nn.Module) -> Forward:
    """The forward as Fabric's wrapper runs it, but without autocast, since float16 would lose small gradients."""

    def forward(*inputs: Any, **options: Any) -> Any:
        cast = [in_weights_format(model, x) for x in inputs]
        with run.fabric.autocast(), torch.autocast(run.fabric.device.type, enabled=False):
            found = model(*cast, **options)
        return run.fabric.strategy.precision.convert_output(found)

    return forward
