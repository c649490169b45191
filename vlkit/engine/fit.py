"""The training loop. It is independent of the task: a script passes it a model, batches and a loss."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from vlkit.engine.begin import begin_with
from vlkit.engine.checkpoint import STATE_FILE
from vlkit.engine.choose_mix import MixChoice
from vlkit.engine.compiled import compile_frozen
from vlkit.engine.distributed import average_gradients, average_numbers
from vlkit.engine.interrupt import StopRequest
from vlkit.engine.loader import EpochLoader, seed_batch
from vlkit.engine.losses import mean_losses, named_losses
from vlkit.engine.optim import set_lr
from vlkit.engine.run import LossOf, Run
from vlkit.engine.state import FitResult
from vlkit.engine.training import Training
from vlkit.engine.zeroth_step import take_zeroth_step
from vlkit.errors import UserError

log = logging.getLogger(__name__)

Evaluate = Callable[[], Mapping[str, float]]


def fit(
    run: Run,
    model: Any,
    loader: EpochLoader,
    loss_of: LossOf,
    evaluate: Evaluate | None,
    *,
    primary: str,
    identity: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train the parameters that require a gradient; afterwards ``model`` holds the weights of the best evaluation.

    If the folder has a checkpoint, the run continues from it, with exactly the steps of an uninterrupted run. Ctrl-C
    and SIGTERM let the current step finish and write a checkpoint first; with ``on_stop="finish"`` training ends there
    as if that step were the last.

    Args:
        run: config, device and folder.
        model: as returned by ``fabric.setup_module``, on the device.
        loader: the training batches.
        loss_of: see :data:`vlkit.engine.run.LossOf`; gradients are averaged over batches and processes.
        evaluate: returns metrics, larger is better. Called without gradient, with the model in eval mode, on every
            process; the numbers of process 0 count. None: the last weights are the best.
        primary: name of the metric that chooses the best weights.
        identity: further JSON values that must not change when the run continues (fingerprint of the base, digest of
            the data).

    Raises:
        UserError: the loss or the gradient is not finite, or the checkpoint belongs to a different run.
        KeyboardInterrupt, SystemExit: after Ctrl-C and SIGTERM, with the checkpoint written; with ``on_stop="finish"``
            only after a second one.
    """
    # A checkpoint holds the weights, but that of mezo only what was added to the start.
    if run.config.init and (run.config.optimizer == "mezo" or not (run.folder.checkpoint / STATE_FILE).exists()):
        begin_with(model, run.config.init, (identity or {}).get("base", {}))
    if run.config.compile:
        compile_frozen(model)
    choice = MixChoice(run, model) if run.config.choose_mix and evaluate else None
    training = Training(run, model, loader, primary)
    stop = StopRequest(launched=run.fabric.world_size > 1)
    finishes = run.config.on_stop == "finish"
    with stop.listening():
        state = training.start(dict(identity or {}))
        batches = loader.batches(training.first_batch(state.step), training.first_batch(training.steps))
        with training.bar:
            while True:
                ends = state.step == training.steps
                if training.must_stop(stop):
                    training.save()
                    if not finishes:
                        training.end_snapshots()
                        log.info("stopped after step %d of %d; continue with --resume", state.step, training.steps)
                        stop.leave()
                    log.info("stopped after step %d of %d; saving the adapter", state.step, training.steps)
                    ends = True
                if training.evaluation_due(ends):
                    with training.evaluation(None if finishes else stop):
                        metrics = run.fabric.broadcast({k: float(v) for k, v in evaluate().items()} if evaluate else {})
                    training.keep_best(metrics)
                    training.save()
                if ends:
                    break
                take_step(training, batches, loss_of, stop)
                training.take_snapshot()
                if training.checkpoint_due():
                    training.save()
        if stop.signal and not finishes:
            stop.leave()
    result = training.finish()
    return choice.choose(result, evaluate, primary) if choice and evaluate else result


def take_step(training: Training, batches: Iterator[Any], loss_of: LossOf, stop: StopRequest) -> None:
    """One optimizer step: gradients of one or more batches, averaged, clipped, applied."""
    began = time.monotonic()
    run, optimizer = training.run, training.optimizer
    set_lr(optimizer, training.lr())
    if training.mezo is not None:
        numbers = take_zeroth_step(training, training.mezo, batches, loss_of, stop)
        check_finite(training, numbers)
        end_step(training, numbers, began)
        return
    losses: list[Mapping[str, Tensor]] = []
    places = training.places(training.state.step)
    for place in places:
        batch = run.fabric.to_device(next(batches))
        seed_batch(run.config.seed, place, run.fabric.global_rank)  # dropout depends on the place alone
        loss = named_losses(loss_of(training.model, batch, place / len(training.loader)))
        run.fabric.backward(loss["loss"])
        losses.append(loss)
    training.divide_gradients(len(places))
    average_gradients(run.fabric, training.trained, training.buffers)
    norm = run.fabric.clip_gradients(
        training.core, optimizer, max_norm=run.config.clip or math.inf, error_if_nonfinite=False
    )
    # The only place in a step that waits for the device. Processes must stop together, so they agree here.
    numbers = {**mean_losses(losses), "gradient_norm": norm, "stop": float(bool(stop.signal))}
    numbers = average_numbers(run.fabric, numbers)
    training.asked_to_stop = numbers.pop("stop") > 0
    check_finite(training, numbers)
    training.before_update()
    optimizer.step()
    optimizer.zero_grad()
    end_step(training, numbers, began)


def end_step(training: Training, numbers: Mapping[str, float], began: float) -> None:
    """Count and log a finished step."""
    training.state.step += 1
    training.tell_step()
    training.state.train_seconds += time.monotonic() - began
    training.log_step(numbers)


def check_finite(training: Training, numbers: Mapping[str, float]) -> None:
    """Stop the run before a step that would ruin the weights.

    Raises:
        UserError: the loss or the gradient is infinite or not a number.
    """
    # With float16 a gradient may overflow: the loss scaler then skips the step.
    watched = ("loss",) if training.loss_is_scaled or training.mezo else ("loss", "gradient_norm")
    bad = [f"{name} is {numbers[name]}" for name in watched if not math.isfinite(numbers[name])]
    if bad:
        config = training.run.config
        what = f"step {training.state.step + 1}: {', '.join(bad)}"
        fix = f"start again with a lower --lr (now {config.lr:g}) or --clip (now {config.clip:g})"
        raise UserError(f"{what}; the step was not applied, the weights are those before it; {fix}")
