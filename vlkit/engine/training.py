"""Bookkeeping of a training run: progress, schedule of evaluations, best weights, log and checkpoints.

The loop and the step themselves are in :mod:`vlkit.engine.fit`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vlkit.adapters.base import trained_state
from vlkit.engine import checkpoint
from vlkit.engine.distributed import make_equal
from vlkit.engine.interrupt import StopRequest
from vlkit.engine.loader import EpochLoader, seed_batch
from vlkit.engine.mezo import Mezo
from vlkit.engine.optim import lr_factor, make_optimizer
from vlkit.engine.progress import ProgressBar, peak_memory_bytes
from vlkit.engine.run import Run
from vlkit.engine.snapshots import Snapshots
from vlkit.engine.state import FitResult, RunState
from vlkit.errors import UserError, some

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60.0  # longest time between two checkpoints
CURVES_SECONDS = 20.0  # drawing takes half a second: too long for every short epoch


class Training:
    """The state that :func:`vlkit.engine.fit.fit` keeps while a run trains.

    Attributes:
        run, model, loader: as given to ``fit``; ``core`` is the model without Fabric's wrapper.
        trained: the trainable parameters.
        buffers: tensors that are saved with them (batch norm statistics).
        optimizer: the optimizer of ``trained``; ``mezo`` = the same, if it needs no gradients.
        steps: optimizer steps of the whole run.
        state: progress of the run.
        asked_to_stop: whether any process was asked to stop in the last step.
    """

    def __init__(self, run: Run, model: Any, loader: EpochLoader, primary: str) -> None:
        self.run, self.model, self.loader, self.primary = run, model, loader, primary
        self.core = checkpoint.unwrap(model)
        self._parameters = {name: p for name, p in self.core.named_parameters() if p.requires_grad}
        if not self._parameters:
            raise ValueError("nothing to train: no parameter of the model requires a gradient")
        self.trained = list(self._parameters.values())
        self._stepped: list[Any] = [module for module in self.core.modules() if hasattr(module, "at_step")]
        self.buffers = [t for name, t in trained_state(self.core).items() if name not in self._parameters]
        config = run.config
        self.mezo: Mezo | None = None
        if config.optimizer == "mezo":
            self.mezo = Mezo(self._parameters, config.lr, config.weight_decay, config.zeroth, config.seed)
        optimizer = self.mezo or make_optimizer(self._parameters, config.lr, config.weight_decay, config.optimizer)
        self.optimizer: Any = run.fabric.setup_optimizers(optimizer)  # Fabric's wrapper; its type says a tuple, too
        self._steps_per_epoch = -(-len(loader) // config.accumulate)
        self.steps = config.epochs * self._steps_per_epoch
        self.state = RunState()
        self.asked_to_stop = False
        self.bar = ProgressBar(self.steps, shown=run.fabric.is_global_zero)
        self._best: dict[str, Tensor] = {}
        self._identity: dict[str, Any] = {}
        self._snapshots: Snapshots | None = None
        self._saved_at = self._drawn_at = time.monotonic()

    # --- progress ---

    def first_batch(self, step: int) -> int:
        """Number of batches before ``step``; the last step of an epoch may average fewer than ``accumulate``."""
        epoch, place = divmod(step, self._steps_per_epoch)
        return epoch * len(self.loader) + place * self.run.config.accumulate

    def places(self, step: int) -> range:
        """The batches of ``step``, counted over all epochs."""
        return range(self.first_batch(step), self.first_batch(step + 1))

    def lr(self) -> float:
        """Learning rate of the next step."""
        return self.lr_of(self.state.step)

    def lr_of(self, step: int) -> float:
        """Learning rate of 0-based ``step``."""
        config = self.run.config
        warmup = round(config.warmup * self.steps)
        return config.lr * lr_factor(config.schedule, step, self.steps, warmup, config.decay_at)

    @property
    def loss_is_scaled(self) -> bool:
        """Whether a loss scaler is in use (float16)."""
        return bool(self.run.fabric.strategy.precision.state_dict())

    def must_stop(self, stop: StopRequest) -> bool:
        """Whether to stop here. Several processes must stop after the same step, so they agree in each step."""
        return self.asked_to_stop or (bool(stop.signal) and self.run.fabric.world_size == 1)

    def evaluation_due(self, ends: bool) -> bool:
        """Whether an evaluation is due now; ``ends``: training ends with this step."""
        step, every = self.state.step, self._steps_per_epoch * self.run.config.evaluate_every
        return step > self.state.evaluated and (step % every == 0 or ends)

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint is due between two evaluations."""
        every = self.run.config.checkpoint_every
        by_step = every > 0 and self.state.step % every == 0
        return by_step or time.monotonic() - self._saved_at > CHECKPOINT_SECONDS

    # --- start and end ---

    def start(self, identity: dict[str, Any]) -> RunState:
        """Load the newest snapshot or checkpoint, or write the first checkpoint.

        Raises:
            UserError: the checkpoint has another ``identity``, batch size or number of examples.
        """
        run, found = self.run, checkpoint.load(self.run.folder.checkpoint)
        own = {"processes": run.fabric.world_size, "batch": self.loader.batch_size, "examples": self.loader.count}
        identity = {**own, **identity}
        self._identity = json.loads(json.dumps(identity))  # as it is read back: tuples become lists
        self._snapshots = self._open_snapshots(fresh=found is None)
        if found is not None:
            in_memory = self._snapshots.restore(newer_than=found.progress.step) if self._snapshots else None
            self._restore(in_memory or found)
        make_equal(run.fabric, list(trained_state(self.core).values()))
        run.fabric.barrier()  # every process has read the checkpoint before process 0 replaces it
        step, evaluated = self.state.step, self.state.evaluated
        run.folder.rewind_log(step, evaluated)
        if found is None:
            self._save_start()
            self.save()
        elif step == evaluated == self.steps:
            log.info("%s: the run is finished (%d steps); reporting it again", run.folder.path, self.steps)
        else:
            log.info("%s: continuing at step %d of %d", run.folder.path, step, self.steps)
        trained, total = (sum(p.numel() for p in group) for group in (self.trained, self.core.parameters()))
        log.info("%s of %s parameters train", f"{trained:,}", f"{total:,}")
        self.model.train()
        self.tell_step()
        self._reset_peak()
        return self.state

    def finish(self) -> FitResult:
        """Load the best weights into the model and return the result."""
        self.end_snapshots()
        if self._best:
            checkpoint.load_trained(self.core, self._best)
        self.model.eval()
        self.run.folder.draw_curves(self.primary)
        seconds, examples = self.state.train_seconds, self.first_batch(self.state.step) * self.loader.batch_size
        return FitResult(
            metrics=self.state.best_metrics,
            best_step=self.state.best_step,
            steps=self.state.step,
            train_seconds=seconds,
            examples_per_second=examples / seconds if seconds else 0.0,
            peak_memory_bytes=self.state.peak_memory_bytes,
        )

    # --- during training ---

    def divide_gradients(self, count: int) -> None:
        """Divide sums over ``count`` batches to get means."""
        for parameter in self.trained:
            if parameter.grad is not None and count > 1:
                parameter.grad /= count

    def log_step(self, numbers: Mapping[str, float]) -> None:
        """Show the last step, and log it every ``log_every`` steps."""
        step, seconds = self.state.step, self.state.train_seconds
        speed = self.first_batch(step) * self.loader.batch_size / seconds
        memory = peak_memory_bytes(self.run.fabric.device)
        if step % self.run.config.log_every == 0 or step in (1, self.steps):
            self.run.log(
                step=step,
                epoch=step / self._steps_per_epoch,
                **numbers,
                lr=self.optimizer.param_groups[0]["lr"],
                examples_per_second=speed,
                train_seconds=seconds,
                memory_bytes=memory,
            )
        self.bar.advance(step, numbers["loss"], speed, memory)

    @contextlib.contextmanager
    def evaluation(self, stop: StopRequest | None) -> Iterator[None]:
        """Evaluate within this block: eval mode, no gradient; a signal writes a checkpoint and stops at once.

        Without ``stop`` the first signal waits until the evaluation is done.
        """
        self._keep_peak()
        self.model.eval()
        self.bar.pause()
        seed_batch(self.run.config.seed, self.first_batch(self.state.step), self.run.fabric.global_rank)
        try:
            with torch.no_grad(), stop.at_once() if stop else contextlib.nullcontext():
                yield
        except (KeyboardInterrupt, SystemExit):
            self.save()
            self.end_snapshots(alone=True)
            raise
        self.bar.go_on()
        self.model.train()
        self._reset_peak()

    def keep_best(self, metrics: dict[str, float]) -> None:
        """Log an evaluation; keep the weights if they are the best so far, or always if there are no metrics."""
        state, epoch = self.state, self.state.step / self._steps_per_epoch
        state.evaluated = state.step
        if not metrics:
            state.best_step = state.step
            return
        score, best = metrics[self.primary], state.best_score
        is_best = math.isfinite(score) and (best is None or score > best)
        if is_best or not self._best:
            self._best = checkpoint.copy_trained(self.core)
            state.best_step, state.best_metrics = state.step, metrics
            state.best_score = score if is_best else None
        self.run.log(step=state.step, epoch=epoch, split="val", **metrics)
        log.info("epoch %g: %s %.2f%s", epoch, self.primary, score, " (best so far)" if is_best else "")
        if time.monotonic() - self._drawn_at > CURVES_SECONDS:
            self.run.folder.draw_curves(self.primary)
            self._drawn_at = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint of the current state."""
        self._keep_peak()
        self._saved_at = time.monotonic()
        if self.run.fabric.is_global_zero:
            checkpoint.save(self.run.folder.checkpoint, self._whole_state())

    def take_snapshot(self) -> None:
        """Begin a snapshot in memory, if one is due after this step."""
        if self._snapshots is not None and self._snapshots.due(self.state.step):
            self._keep_peak()
            self._snapshots.take(self._whole_state())

    def tell_step(self) -> None:
        """Tell each module that has a method ``at_step(step)`` how many optimizer steps are done.

        A module cannot count them itself: its forward runs several times in a step (accumulation, recomputation,
        zeroth-order estimates).
        """
        for module in self._stepped:
            module.at_step(self.state.step)

    def before_update(self) -> None:
        """The weights are about to change: a snapshot must have been copied."""
        if self._snapshots is not None:
            self._snapshots.before_update()

    def end_snapshots(self, alone: bool = False) -> None:
        """Free the memory of the snapshots: a checkpoint holds the state.

        Process 0 writes that checkpoint, and may die before it is whole: the others keep their snapshots until then.

        Args:
            alone: other processes may be dead (a launcher stops the rest of a run by SIGTERM), so this one waits for
                none. Snapshots on other nodes than that of process 0 then stay for the continuation, which ends them.
        """
        if self._snapshots is None or (alone and not self.run.fabric.is_global_zero):
            return
        if not alone:
            self.run.fabric.barrier()
        self._snapshots.close()
        self._snapshots = None

    # --- details ---

    def _whole_state(self) -> checkpoint.State:
        # MeZO's weights follow from the start and a number per step.
        mezo = self.mezo
        own = checkpoint.optimizer_tensors(self.optimizer.optimizer, self._parameters)
        return checkpoint.State(
            trained={} if mezo else trained_state(self.core),
            best={} if mezo else self._best,
            optimizer=mezo.record() if mezo else own,
            progress=self.state,
            identity=self._identity,
            loss_scaler=self.run.fabric.strategy.precision.state_dict(),
        )

    def _open_snapshots(self, fresh: bool) -> Snapshots | None:
        config, fabric = self.run.config, self.run.fabric
        if not config.snapshot_every:
            return None
        token = fabric.broadcast(self.run.folder.token(fresh) if fabric.is_global_zero else "")
        return Snapshots(fabric, config.snapshot_memory, token, config.snapshot_every, config.snapshot_redundancy)

    def _restore(self, found: checkpoint.State) -> None:
        # Batches are functions of seed and step, so another number of processes makes the same ones.
        old, new = ({k: v for k, v in each.items() if k != "processes"} for each in (found.identity, self._identity))
        old.setdefault("batch", new["batch"])  # checkpoints of vlkit 0.1
        before, now = found.identity.get("processes"), self._identity["processes"]
        if before != now:
            log.info(
                "continuing with %s processes instead of %s: batches are the same, dropout is drawn anew", now, before
            )
        changed = [f"{k} was {old.get(k)}, now {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k)]
        if changed:
            fix = "continue with the same, or start again in another --output"
            folder = self.run.folder.checkpoint
            raise UserError(f"--resume: {some(changed, 12)} since {folder} was written; {fix}")
        self.run.fabric.strategy.precision.load_state_dict(found.loss_scaler)
        self.state, self._best = found.progress, found.best
        if self.mezo is not None:
            self._replay(self.mezo, found.optimizer)
            return
        checkpoint.load_trained(self.core, found.trained, self.run.folder.checkpoint)
        checkpoint.restore_optimizer(self.optimizer.optimizer, self._parameters, found.optimizer)

    def _save_start(self) -> None:
        """MeZO: write the weights that the recorded steps start from, once."""
        if self.mezo is not None:
            self.mezo.remember_start()
            if self.run.fabric.is_global_zero:
                start = checkpoint.State(trained=trained_state(self.core))
                checkpoint.save(self.run.folder.checkpoint / "start", start)

    def _replay(self, mezo: Mezo, record: Mapping[str, Tensor]) -> None:
        """MeZO: take the recorded steps again, from the start; keep the weights of the best evaluation on the way."""
        folder = self.run.folder.checkpoint / "start"
        start = checkpoint.load(folder)
        if start is None:
            raise UserError(f"{folder / checkpoint.STATE_FILE}: is missing; copy the whole checkpoint folder")
        checkpoint.load_trained(self.core, start.trained, folder)
        mezo.remember_start()

        def seen(step: int) -> None:
            if step == self.state.best_step and self.state.best_metrics:
                self._best = checkpoint.copy_trained(self.core)

        mezo.replay(record, self.lr_of, seen)

    def _keep_peak(self) -> None:
        self.state.peak_memory_bytes = max(self.state.peak_memory_bytes, peak_memory_bytes(self.run.fabric.device))

    def _reset_peak(self) -> None:
        if self.run.fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.run.fabric.device)
