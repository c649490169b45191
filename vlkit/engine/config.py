"""The flags that every training script has. A script's own config inherits from one of these classes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlkit.encoders.stored_weights import WeightFormat
from vlkit.engine.mezo import ZerothOptions
from vlkit.engine.optim import OptimizerKind, ScheduleKind
from vlkit.engine.snapshots import Redundancy
from vlkit.engine.trackers import tracker_names
from vlkit.errors import UserError
from vlkit.number_formats import NumberFormat


@dataclass
class RunConfig:
    """Flags of a training run."""

    output: Path | None = None
    """Run folder (default: runs/<task>/<time>)."""
    init: Path | None = None
    """Begin with the trained weights of this adapter, of the same task or another, where the model has the same part
    (the towers' adapters, if method, options and base are the same); default: new weights."""
    epochs: int = 5
    """Passes over the training data."""
    batch_size: int = 64
    """Examples per step, all processes together."""
    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Weight decay of matrices; biases, norms and scalar gates are not decayed."""
    optimizer: OptimizerKind = "adamw"
    """Update rule: AdamW; SGD with momentum 0.9; adamw8bit or apollo (AdamW with a quarter of the state or less, from
    bitsandbytes and apollo-torch: pip install "vlkit[optimizers]"); or mezo (forward passes alone, in the memory of
    inference; it needs 10 to 100 times as many steps, at about a hundredth of the learning rate)."""
    zeroth: ZerothOptions = field(default_factory=ZerothOptions)
    schedule: ScheduleKind = "cosine"
    """How the learning rate falls after the warm-up: along a cosine, along a line, in steps, or not at all."""
    decay_at: tuple[float, ...] = (0.6,)
    """Shares of the run after which --schedule step divides the learning rate by ten (0.6: after epoch 15 of 25)."""
    warmup: float = 0.1
    """Share of all steps in which the learning rate rises to its peak."""
    clip: float = 1.0
    """Largest global norm of the gradient; 0 = no clipping."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one optimizer step."""
    base_weights: WeightFormat = "fp32"
    """Format of the frozen base's matrices: fp32 (as loaded), bf16, int8 or nf4 (a half, a quarter, an eighth of the
    bytes). Only weights are rounded. Adapters that train them (full) need fp32; lora on int8 or nf4 is QLoRA."""
    seed: int = 0
    """Seed of all randomness: initial weights, data order, augmentation, dropout."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on; auto = CUDA if available."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"] = "auto"
    """Number format; auto = mixed on CUDA, 32-true on the CPU."""
    resume: bool = False
    """Continue the run in --output exactly from its last checkpoint."""
    on_stop: Literal["leave", "finish"] = "leave"
    """What Ctrl-C and SIGTERM do during training. leave: write a checkpoint and end, to continue with --resume; finish:
    write a checkpoint, then evaluate and save the adapter as if this were the last step."""
    workers: int | None = None
    """Worker processes that load batches; default: none on the CPU, up to 8 for CUDA."""
    compile: bool = False
    """Run frozen blocks through which no gradient passes by torch.compile: 0.8 times their time on a GPU, after seconds
    to minutes at the start; nothing to gain on a CPU."""
    log_every: int = 10
    """Steps between lines of log.jsonl."""
    log_to: str = ""
    """Trackers that get a copy of the log, separated by commas: tensorboard, wandb, trackio, mlflow."""
    evaluate_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    choose_mix: bool = False
    """After training, keep the part of the adapter (a quarter to all of it) that is best on the validation split: helps
    where it adapts too far, as on small data. Costs three evaluations."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0 = by time (every minute). Each evaluation writes one too."""
    snapshot_every: int = 0
    """Steps between snapshots in memory that outlives the processes; 0 = none. A run that torchrun starts again
    (--max-restarts) continues from the newest one."""
    snapshot_redundancy: Redundancy = "replica"
    """What each node holds of a snapshot. replica: all of it; parity: a share, and a parity from which one lost node
    is restored."""
    snapshot_memory: Path | None = None
    """Memory file system (tmpfs) for the snapshots; default: /dev/shm, or a process that holds them where that is too
    small or missing."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "log_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: must be at least 1")
        for name in ("lr", "weight_decay", "clip", "seed", "checkpoint_every", "snapshot_every", "workers"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"--{name} {value}: must be 0 or more, and finite")
        tracker_names(self.log_to)
        if self.optimizer == "mezo" and self.precision not in ("auto", "32-true", "64-true"):
            raise UserError(
                f"--optimizer mezo --precision {self.precision}: differences of two losses drown in its rounding; use "
                "32-true"
            )
        if self.optimizer == "mezo" and self.snapshot_every:
            raise UserError("--snapshot_every: a checkpoint of mezo is a number per step; use --checkpoint_every 1")
        if not all(0 < share < 1 for share in self.decay_at):
            raise UserError(f"--decay_at {list(self.decay_at)}: give shares of the run, between 0 and 1")
        if not 0 <= self.warmup <= 1:
            raise UserError(f"--warmup {self.warmup}: must be a share between 0 and 1")


@dataclass
class CachedRunConfig(RunConfig):
    """Flags of a script that can train from the tap cache (:mod:`vlkit.tap_cache.maker`)."""

    cache: bool | Path | None = False
    """Store the output of the frozen early route for each training example on disk, in this folder or (true) in vlkit's
    cache folder: from the second epoch on, and in later runs, nothing is decoded and the early route does not run. Its
    size is logged first. null: true on the demo data if the method has an early route, else false."""
    cache_dtype: NumberFormat = "bf16"
    """Number format of the cache; int8 stores one scale per 64 values."""

    def refuse_cache(self, flag: str, what: str) -> None:
        """Train without the cache where the taps change from epoch to epoch.

        Args:
            flag: the flag that changes them, as the user wrote it.
            what: a clause that says what is different in each epoch.

        Raises:
            UserError: ``--cache`` was given.
        """
        if self.cache:
            raise UserError(
                f"--cache: with {flag} {what} in each epoch, so taps cannot be stored; drop one of the two flags"
            )
        self.cache = False

    def choose_cache(self, wanted: bool) -> None:
        """Where ``--cache`` was not given (None), set it to ``wanted``; the run folder's config then states it."""
        if self.cache is None:
            self.cache = wanted
