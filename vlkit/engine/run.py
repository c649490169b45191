"""The parts of a training run: one step, one evaluation, one checkpoint. The loop is :func:`vlkit.engine.fit.fit`."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from vlkit.adapters.base import trained_state
from vlkit.engine import checkpoint
from vlkit.engine.distributed import average_gradients, average_numbers, make_equal
from vlkit.engine.interrupt import StopRequest
from vlkit.engine.loader import EpochLoader, seed_batch
from vlkit.engine.progress import ProgressBar, peak_memory_bytes
from vlkit.engine.run_folder import RunFolder
from vlkit.errors import UserError, some

if TYPE_CHECKING:
    from vlkit.engine.fit import RunConfig
    from vlkit.memory import StepMemory

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60.0  # longest time between two checkpoints
CURVES_SECONDS = 20.0  # drawing takes half a second; not after each of many short epochs

Step = Callable[[Any, float], Mapping[str, "Tensor | float"]]
Evaluate = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class FitResult:
    """What :func:`vlkit.engine.fit.fit` achieved.

    Attributes:
        metrics: the best evaluation (by the primary metric), whose weights the model holds; empty without evaluations.
        best_step: optimizer steps before that evaluation.
        steps: optimizer steps of the whole run.
        train_seconds: time in training steps, resumed parts included.
        examples_per_second: training speed over that time.
        peak_memory_bytes: allocator peak of the training steps on CUDA, peak resident size of the process on the CPU.
    """

    metrics: dict[str, float]
    best_step: int
    steps: int
    train_seconds: float
    examples_per_second: float
    peak_memory_bytes: int

    def costs(self, step: StepMemory, device: torch.device) -> dict[str, Any]:
        """Memory and time as :class:`vlkit.engine.run_folder.Report` has them: of this run, and per step."""
        return {
            "trainable_parameters": step.trainable_parameters,
            "total_parameters": step.total_parameters,
            "saved_activation_bytes": step.saved_bytes,
            # On the CPU the process's resident size would mostly tell the size of the libraries.
            "peak_memory_bytes": self.peak_memory_bytes if device.type == "cuda" else step.total_bytes,
            "train_seconds": self.train_seconds,
            "examples_per_second": self.examples_per_second,
            "step_time_over_forward": step.time_over_forward,
        }


def cosine_with_warmup(step: int, steps: int, warmup: int) -> float:
    """Factor on the peak learning rate in ``step`` (0-based): a linear rise over ``warmup`` steps, a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(parameters: Mapping[str, nn.Parameter], lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over ``parameters``; vectors and scalars (biases, norms, gates) are not decayed."""
    decayed = [p for p in parameters.values() if p.ndim >= 2]
    others = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    # Fused: each weight is passed over once, not five times, and no temporary tensors of its size are made.
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, fused=True)


class Run:
    """The moving parts of :func:`vlkit.engine.fit`. ``now`` holds every number a checkpoint needs, as JSON values."""

    def __init__(
        self,
        model: nn.Module,
        loader: EpochLoader,
        step: Step,
        evaluate: Evaluate | None,
        primary: str,
        config: RunConfig,
        folder: RunFolder,
        fabric: Fabric,
    ) -> None:
        self.model, self.loader, self.step, self.measure = model, loader, step, evaluate
        self.primary, self.config, self.folder, self.fabric = primary, config, folder, fabric
        self.core = checkpoint.unwrap(model)
        self.parameters = {name: p for name, p in self.core.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("nothing to train: no parameter of the model requires a gradient")
        state = trained_state(self.core)
        self.buffers = [tensor for name, tensor in state.items() if name not in self.parameters]
        self.optimizer = fabric.setup_optimizers(make_optimizer(self.parameters, config.lr, config.weight_decay))
        self.steps_an_epoch = -(-len(loader) // config.accumulate)
        self.steps = config.epochs * self.steps_an_epoch
        self.best: dict[str, Tensor] = {}
        self.now: dict[str, Any] = {"step": 0, "evaluated": 0, "train_seconds": 0.0, "peak_memory_bytes": 0}
        self.now |= {"best_score": None, "best_step": 0, "best_metrics": {}}
        self.asked_to_stop = False
        self.bar = ProgressBar(self.steps, shown=fabric.is_global_zero)
        self._saved_at = self._drawn_at = time.monotonic()

    # --- where the run stands ---

    def batch_of(self, step: int) -> int:
        """How many batches lie before ``step``; an epoch's last step may average fewer than ``accumulate``."""
        epoch, place = divmod(step, self.steps_an_epoch)
        return epoch * len(self.loader) + place * self.config.accumulate

    def evaluation_due(self) -> bool:
        step = self.now["step"]
        every = self.steps_an_epoch * self.config.evaluate_every
        return step > self.now["evaluated"] and (step % every == 0 or step == self.steps)

    def checkpoint_due(self) -> bool:
        every = self.config.checkpoint_every
        by_step = every > 0 and self.now["step"] % every == 0
        return by_step or time.monotonic() - self._saved_at > CHECKPOINT_SECONDS

    # --- what happens in it ---

    def start(self, identity: dict[str, Any]) -> None:
        """Go to where the last checkpoint was, or write the first one."""
        identity = {"processes": self.fabric.world_size, "examples": self.loader.count, **identity}
        self.now["identity"] = json.loads(json.dumps(identity))  # as it will be read back: tuples are lists
        state = checkpoint.load(self.folder.checkpoint)
        if state is not None:
            self._restore(state)
        make_equal(self.fabric, list(trained_state(self.core).values()))
        self.fabric.barrier()  # every process has read the checkpoint before process 0 replaces it
        self.folder.rewind_log(self.now["step"], self.now["evaluated"])
        if state is None:
            self.save()
        elif self.now["step"] == self.now["evaluated"] == self.steps:
            log.info("%s: the run is finished (%d steps); reporting it again", self.folder.path, self.steps)
        else:
            log.info("%s: going on at step %d of %d", self.folder.path, self.now["step"], self.steps)
        trained = sum(p.numel() for p in self.parameters.values())
        log.info("%s of %s parameters train", f"{trained:,}", f"{sum(p.numel() for p in self.core.parameters()):,}")
        self.model.train()
        self._reset_peak()

    def train(self, batches: Iterator[Any], stop: StopRequest) -> None:
        """One optimizer step: gradients of one or more batches, averaged, clipped, applied."""
        began = time.monotonic()
        step, config, fabric = self.now["step"], self.config, self.fabric
        lr = config.lr * cosine_with_warmup(step, self.steps, round(config.warmup * self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        numbers, places = [], range(self.batch_of(step), self.batch_of(step + 1))
        for place in places:
            batch = fabric.to_device(next(batches))
            seed_batch(config.seed, place, fabric.global_rank)
            numbers.append(self.step(batch, place / len(self.loader)))
        means = {k: sum(torch.as_tensor(n[k]).detach() for n in numbers) / len(numbers) for k in numbers[0]}
        for parameter in self.parameters.values():
            if parameter.grad is not None and len(places) > 1:
                parameter.grad /= len(places)
        average_gradients(fabric, list(self.parameters.values()), self.buffers)
        norm = fabric.clip_gradients(
            self.core, self.optimizer, max_norm=config.clip or math.inf, error_if_nonfinite=False
        )
        # The one place of a step that waits for the device.
        values = average_numbers(fabric, {**means, "gradient_norm": norm, "stop": float(bool(stop.signal))})
        self.asked_to_stop = values.pop("stop") > 0
        self._check_finite(values)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.now["step"] += 1
        self.now["train_seconds"] += time.monotonic() - began
        self._log_step({**values, "lr": lr})

    def evaluate(self, stop: StopRequest) -> None:
        """Measure, and keep the weights if they are the best so far."""
        step = self.now["step"]
        if self.measure is None:
            self.now |= {"evaluated": step, "best_step": step}
            return
        self._keep_peak()
        self.model.eval()
        self.bar.pause()
        seed_batch(self.config.seed, self.batch_of(step), self.fabric.global_rank)
        try:
            with torch.no_grad(), stop.at_once():
                metrics = self.fabric.broadcast({k: float(v) for k, v in self.measure().items()})
        except (KeyboardInterrupt, SystemExit):
            self.save()
            raise
        self.bar.go_on()
        self.model.train()
        self._reset_peak()
        score = metrics[self.primary]
        best = self.now["best_score"]
        is_best = math.isfinite(score) and (best is None or score > best)
        if is_best or not self.best:
            self.best = checkpoint.copy_trained(self.core)
            self.now |= {"best_step": step, "best_metrics": metrics, "best_score": score if is_best else None}
        self.now["evaluated"] = step
        self.folder.log(step=step, epoch=step / self.steps_an_epoch, split="val", **metrics)
        note = " (best so far)" if is_best else ""
        log.info("epoch %g: %s %.2f%s", step / self.steps_an_epoch, self.primary, score, note)
        if time.monotonic() - self._drawn_at > CURVES_SECONDS:
            self.folder.draw_curves(self.primary)
            self._drawn_at = time.monotonic()

    def save(self) -> None:
        """Write the checkpoint of this very moment."""
        self._keep_peak()
        self._saved_at = time.monotonic()
        if self.fabric.is_global_zero:
            optimizer = checkpoint.optimizer_tensors(self.optimizer.optimizer, self.parameters)
            values = {**self.now, "loss_scaler": self.fabric.strategy.precision.state_dict()}
            state = checkpoint.State(trained_state(self.core), self.best, optimizer, values)
            checkpoint.save(self.folder.checkpoint, state)

    def finish(self) -> FitResult:
        """Put the best weights into the model and sum up."""
        if self.best:
            checkpoint.load_trained(self.core, self.best)
        self.model.eval()
        self.folder.draw_curves(self.primary)
        seconds, examples = self.now["train_seconds"], self.batch_of(self.steps) * self.loader.batch_size
        return FitResult(
            metrics=self.now["best_metrics"],
            best_step=self.now["best_step"],
            steps=self.steps,
            train_seconds=seconds,
            examples_per_second=examples / seconds if seconds else 0.0,
            peak_memory_bytes=self.now["peak_memory_bytes"],
        )

    # --- details ---

    def _restore(self, state: checkpoint.State) -> None:
        old, new = state.values["identity"], self.now["identity"]
        changed = [f"{k} was {old.get(k)}, now {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k)]
        if changed:
            mend = "go on with the same or start anew in another --output"
            raise UserError(f"--resume: {some(changed, 12)} since {self.folder.checkpoint} was written; {mend}")
        self.fabric.strategy.precision.load_state_dict(state.values.pop("loss_scaler"))
        self.now = state.values
        self.best = state.best
        checkpoint.load_trained(self.core, state.trained, self.folder.checkpoint)
        checkpoint.restore_optimizer(self.optimizer.optimizer, self.parameters, state.optimizer)

    def _check_finite(self, values: Mapping[str, float]) -> None:
        # With float16 a gradient that overflows is part of the plan: the loss scaler skips the step.
        scaled = bool(self.fabric.strategy.precision.state_dict())
        watched = ("loss",) if scaled else ("loss", "gradient_norm")
        bad = [f"{name} is {values[name]}" for name in watched if not math.isfinite(values[name])]
        if bad:
            mend = f"start anew with a lower --lr (now {self.config.lr:g}) or --clip (now {self.config.clip:g})"
            what = f"step {self.now['step'] + 1}: {', '.join(bad)}"
            raise UserError(f"{what}; the step was not applied and the weights before it are kept; {mend}")

    def _log_step(self, values: dict[str, float]) -> None:
        step, seconds = self.now["step"], self.now["train_seconds"]
        speed = self.batch_of(step) * self.loader.batch_size / seconds
        if step % self.config.log_every == 0 or step in (1, self.steps):
            self.folder.log(
                step=step,
                epoch=step / self.steps_an_epoch,
                **values,
                examples_per_second=speed,
                train_seconds=seconds,
                memory_bytes=peak_memory_bytes(self.fabric.device),
            )
        self.bar.advance(step, values["loss"], speed, peak_memory_bytes(self.fabric.device))

    def _keep_peak(self) -> None:
        self.now["peak_memory_bytes"] = max(self.now["peak_memory_bytes"], peak_memory_bytes(self.fabric.device))

    def _reset_peak(self) -> None:
        if self.fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.fabric.device)
