"""The training loop: optimizer, schedule, precision, checkpoints, exact resume. It does not know which task it runs.

A task script builds its objects by plain calls, writes its loss in a step function and hands both to :func:`fit`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_fabric import Fabric
from torch import nn

from vlkit.engine.distributed import make_fabric
from vlkit.engine.interrupt import StopRequest
from vlkit.engine.loader import EpochLoader, Examples, Lengths
from vlkit.engine.run import Evaluate, FitResult, Run, Step
from vlkit.engine.run_folder import RunFolder, open_run
from vlkit.errors import UserError
from vlkit.tap_cache.rows import Stored

__all__ = ["CachedRunConfig", "FitResult", "RunConfig", "fit", "make_fabric", "make_loader", "open_run"]

log = logging.getLogger(__name__)


@dataclass
class RunConfig:
    """The flags every training script has; its own config inherits from this."""

    output: Path | None = None
    """Run folder (default: runs/<task>/<time>)."""
    epochs: int = 5
    """Passes over the training data."""
    batch_size: int = 64
    """Examples a step, all processes together."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """AdamW weight decay of matrices; biases, norms and scalar gates have none."""
    warmup: float = 0.1
    """Share of all steps in which the learning rate rises; it falls along a cosine afterwards."""
    clip: float = 1.0
    """Largest global norm of the gradient; 0 = no clipping."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one optimizer step."""
    seed: int = 0
    """Seed of everything random: initial weights, data order, augmentation, dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto = CUDA if there is a device."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"] = "auto"
    """Number format; auto = mixed on CUDA, 32-true on the CPU."""
    resume: bool = False
    """Continue the run in --output exactly where its last checkpoint was."""
    workers: int | None = None
    """Background processes that make batches; default: none on the CPU, up to 8 for CUDA."""
    log_every: int = 10
    """Steps between two lines of log.jsonl."""
    evaluate_every: int = 1
    """Epochs between two evaluations; the last epoch always has one."""
    checkpoint_every: int = 0
    """Steps between two checkpoints; 0 = by time (each minute). Every evaluation writes one too."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 1")
        for name in ("lr", "weight_decay", "clip", "seed", "checkpoint_every", "workers"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"--{name} {value}: must be 0 or more, and finite")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"--warmup {self.warmup}: must be a share between 0 and 1")


@dataclass
class CachedRunConfig(RunConfig):
    """Those of the scripts that can train from the cache of taps (:mod:`vlkit.tap_cache.maker`)."""

    cache: bool | Path = False
    """Keep what the frozen early route gives for each training example on the disk, in this folder or (true) in vlkit's
    cache folder: from the second epoch on, and in later runs, nothing is decoded and no backbone runs."""
    cache_dtype: Stored = "bf16"
    """Number format of the cache; int8 has a scale for every 64 values."""

    def refuse_cache(self, flag: str, what: str) -> None:
        """Refuse a run that was asked to keep taps although they change.

        Args:
            flag: what changes them, as the user gave it.
            what: in words, what is different in each epoch.

        Raises:
            UserError: ``--cache`` was given.
        """
        if self.cache:
            raise UserError(
                f"--cache: with {flag} {what} in each epoch, so taps cannot be kept; leave one of the two out"
            )


def make_loader(
    dataset: Examples,
    config: RunConfig,
    fabric: Fabric,
    collate: Callable[[list[Any]], Any] | None = None,
    lengths: Lengths | None = None,
) -> EpochLoader:
    """The training batches of this process, with the config's batch size, seed and workers.

    With ``lengths`` each batch holds examples of similar length; see :class:`vlkit.engine.loader.EpochLoader`.
    """
    loader = EpochLoader(
        dataset,
        config.batch_size,
        config.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
        workers=workers_for(config, fabric),
        collate=collate,
        pin_memory=fabric.device.type == "cuda",
        lengths=lengths,
    )
    left_out = loader.count - len(loader) * loader.batch_size
    note = f", {left_out} left out in each epoch (others each time)" if left_out else ""
    log.info("%d examples, %d batches of %d an epoch%s", loader.count, len(loader), loader.batch_size, note)
    return loader


def workers_for(config: RunConfig, fabric: Fabric) -> int:
    """Background processes that make batches: as the config says, or what suits the device."""
    if config.workers is not None:
        return config.workers
    return min(8, os.cpu_count() or 1) if fabric.device.type == "cuda" else 0


def fit(
    model: nn.Module,
    loader: EpochLoader,
    step: Step,
    evaluate: Evaluate | None,
    *,
    primary: str,
    config: RunConfig,
    folder: RunFolder,
    fabric: Fabric,
    identity: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train what requires a gradient, and leave the weights of the best evaluation in ``model``.

    The run goes on from the checkpoint in ``folder``, if there is one, and then takes the very steps it would have
    taken uninterrupted. Ctrl-C and SIGTERM let the step finish and write a checkpoint first.

    Args:
        model: as returned by ``fabric.setup_module``, on the device.
        loader: the training batches.
        step: (batch on the device, epochs done so far, a fraction) -> named scalars, among them ``loss``. Computes the
            loss and calls ``fabric.backward``, once or more often; gradients are averaged over batches and processes
            afterwards.
        evaluate: -> metrics, the larger the better. Called without gradient, with the model in eval mode, on every
            process; the numbers of process 0 count. None: the last weights are the best.
        primary: name of the metric that decides.
        config: the run's flags.
        folder: where log, curves and checkpoint go.
        fabric: the run's Fabric.
        identity: whatever else must stay the same when the run goes on, as JSON values (fingerprint of the base, of
            the data).

    Raises:
        UserError: the loss or the gradient is not finite, or the checkpoint belongs to a run of another kind.
        KeyboardInterrupt, SystemExit: after Ctrl-C and SIGTERM, with the checkpoint written.
    """
    run = Run(model, loader, step, evaluate, primary, config, folder, fabric)
    stop = StopRequest(launched=fabric.world_size > 1)
    with stop.listening():
        run.start(dict(identity or {}))
        batches = loader.batches(run.batch_of(run.now["step"]), run.batch_of(run.steps))
        with run.bar:
            while True:
                # Processes must stop after the same step, so several of them ask each other while they train.
                if run.asked_to_stop or (stop.signal and fabric.world_size == 1):
                    run.save()
                    log.info("stopped after step %d of %d; go on with --resume", run.now["step"], run.steps)
                    stop.leave()
                if run.evaluation_due():
                    run.evaluate(stop)
                    run.save()
                if run.now["step"] == run.steps:
                    break
                run.train(batches, stop)
                if run.checkpoint_due():
                    run.save()
        if stop.signal:
            stop.leave()
    return run.finish()
