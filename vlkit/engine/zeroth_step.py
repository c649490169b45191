"""One step with forward passes alone (``--optimizer mezo``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vlkit.engine.distributed import average_numbers
from vlkit.engine.interrupt import StopRequest
from vlkit.engine.loader import seed_batch
from vlkit.engine.losses import mean_losses, named_losses
from vlkit.engine.mezo import Mezo
from vlkit.engine.run import LossOf
from vlkit.engine.training import Training


def take_zeroth_step(
    training: Training, mezo: Mezo, batches: Iterator[Any], loss_of: LossOf, stop: StopRequest
) -> dict[str, float]:
    """Evaluate the loss of one or more batches on both sides of the weights, and move along the direction.

    Processes see their own batches and exchange two losses.

    Returns:
        Numbers for the log: the mean of both losses and the slope, means over batches and processes. If one is not
        finite, the weights are those before the step.
    """
    run, state = training.run, training.state
    places = list(training.places(state.step))
    examples = [run.fabric.to_device(next(batches)) for _ in places]
    training.model.eval()  # dropout is off and batch norms are fixed: both sides must differ by the weights alone
    seen: list[Mapping[str, Tensor]] = []

    def loss() -> float:
        seen[:] = [_losses(training, loss_of, batch, place) for batch, place in zip(examples, places, strict=True)]
        return float(mean_losses(seen)["loss"])

    above, below = mezo.estimate(loss)
    numbers = {**mean_losses(seen), "above": above, "below": below, "stop": float(bool(stop.signal))}
    numbers = average_numbers(run.fabric, numbers)
    training.asked_to_stop = numbers.pop("stop") > 0
    above, below = numbers.pop("above"), numbers.pop("below")
    slope = mezo.slope_of(above, below)
    if slope - slope == 0:  # finite
        mezo.apply(slope)
        if mezo.projection_due:
            _project(training, mezo, loss_of)
    else:
        mezo.cancel()
    return {**numbers, "loss": (above + below) / 2, "slope": slope}


def _losses(training: Training, loss_of: LossOf, batch: Any, place: int) -> dict[str, Tensor]:
    seed_batch(training.run.config.seed, place, training.run.fabric.global_rank)
    with torch.no_grad():
        return named_losses(loss_of(training.model, batch, place / len(training.loader)))


def _project(training: Training, mezo: Mezo, loss_of: LossOf) -> None:
    """DiZO's search, on batches that training has further ahead in its order."""
    fabric, steps = training.run.fabric, mezo.options.project_steps
    first = training.places(training.state.step).stop
    batches = training.loader.batches(first, first + steps)

    def losses() -> Iterator[Callable[[], float]]:
        for place, batch in enumerate(batches, first):
            there = fabric.to_device(batch)
            yield lambda there=there, place=place: float(_losses(training, loss_of, there, place)["loss"])

    mezo.project(losses(), lambda number: average_numbers(fabric, {"slope": number})["slope"])
