"""The progress of a run, and its result."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RunState:
    """All numbers that a run needs to continue, apart from its tensors. A checkpoint holds them as JSON.

    Attributes:
        step: optimizer steps done.
        evaluated: step of the last evaluation.
        train_seconds: time in training steps, resumed parts included.
        peak_memory_bytes: largest peak so far (:func:`vlkit.engine.progress.peak_memory_bytes`).
        best_score: best value of the primary metric; None before the first finite one.
        best_step: step of that evaluation.
        best_metrics: all metrics of that evaluation.
    """

    step: int = 0
    evaluated: int = 0
    train_seconds: float = 0.0
    peak_memory_bytes: int = 0
    best_score: float | None = None
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class FitResult:
    """The result of :func:`vlkit.engine.fit.fit`.

    Attributes:
        metrics: the best evaluation (by the primary metric), whose weights the model holds; empty without evaluations.
        best_step: optimizer steps before that evaluation.
        steps: optimizer steps of the whole run.
        train_seconds: time in training steps, resumed parts included.
        examples_per_second: training speed over that time.
        peak_memory_bytes: allocator peak of the training steps on CUDA, peak resident size of the process on the CPU.
        mix: the part of the adapter that the model holds and ``metrics`` belong to (``--choose_mix``).
    """

    metrics: dict[str, float]
    best_step: int
    steps: int
    train_seconds: float
    examples_per_second: float
    peak_memory_bytes: int
    mix: float = 1.0
