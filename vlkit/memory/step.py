"""Memory and time of one training step, and of what it is compared with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import Optimizer

from vlkit.memory.live import LiveBytes, only_new_garbage


@dataclass(frozen=True)
class StepMemory:
    """What a training step takes, in bytes.

    Attributes:
        trainable_parameters: number of values that train.
        total_parameters: number of values.
        parameter_bytes: parameters and buffers.
        optimizer_bytes: state of the optimizer.
        saved_bytes: kept for backward when the forward is done (:func:`vlkit.memory.saved_bytes`).
        peak_bytes: most there is at once beyond parameters, optimizer state and inputs; gradients are included.
        time_over_forward: time of the step over that of the same forward without gradient; None if it was not taken.
    """

    trainable_parameters: int
    total_parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    saved_bytes: int
    peak_bytes: int
    time_over_forward: float | None = None

    @property
    def total_bytes(self) -> int:
        """Parameters, optimizer state and the step's peak together."""
        return self.parameter_bytes + self.optimizer_bytes + self.peak_bytes


def measure_step(model: nn.Module, loss_of: Callable[[], Tensor], optimizer: Optimizer, timed: int = 0) -> StepMemory:
    """Take two training steps and measure the second: the first one makes the optimizer's state and warms libraries up.

    Weights move: measure a copy where that matters. Of fake tensors the first step is left out but for that state.

    Args:
        model: in training mode, without gradients.
        loss_of: the forward of one step: -> the loss.
        optimizer: over what trains in ``model``.
        timed: steps to time as well, in turns with forwards.
    """
    device = next(model.parameters()).device
    if _is_fake(device):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    else:
        train_step(loss_of, optimizer)
    saved = 0

    def step(live: LiveBytes) -> None:
        def look(loss: Tensor) -> None:
            nonlocal saved
            saved = live.kept_for(loss, model)

        train_step(loss_of, optimizer, look)

    with only_new_garbage():
        peak = peak_bytes(step, device)
    state = (value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor))
    ratio = None
    if timed and not _is_fake(device):
        ratio = time_ratio(lambda: train_step(loss_of, optimizer), torch.no_grad()(loss_of), timed)
    return StepMemory(
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total_parameters=sum(p.numel() for p in model.parameters()),
        parameter_bytes=_bytes_of([*model.parameters(), *model.buffers()]),
        optimizer_bytes=_bytes_of(state),
        saved_bytes=saved,
        peak_bytes=peak,
        time_over_forward=ratio,
    )


def train_step(
    loss_of: Callable[[], Tensor], optimizer: Optimizer, before_backward: Callable[[Tensor], Any] | None = None
) -> None:
    """Forward, backward, update, and gradients freed; ``before_backward`` is called with the loss."""
    loss = loss_of()
    if before_backward:
        before_backward(loss)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def peak_bytes(run: Callable[[LiveBytes], Any], device: torch.device) -> int:
    """Most bytes alive at once in ``run`` beyond those alive before it.

    From the allocator on CUDA; on the CPU, and for fake tensors, from the storages alive. ``run`` is handed the counter
    of the latter (:class:`vlkit.memory.LiveBytes`).
    """
    if device.type != "cuda" or _is_fake(device):
        with LiveBytes() as live:
            run(live)
        return live.peak
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with LiveBytes() as live:
        run(live)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _is_fake(device: torch.device) -> bool:
    """Whether tensors made now are fake."""
    return isinstance(torch.empty(0, device=device), FakeTensor)


@dataclass(frozen=True)
class Times:
    """Medians of what was timed in turns with a reference.

    Attributes:
        ratio: how many times longer it takes than the reference.
        seconds: of one run.
        reference_seconds: of one run of the reference.
    """

    ratio: float
    seconds: float
    reference_seconds: float


def times_in_turns(run: Callable[[], Any], reference: Callable[[], Any], repeats: int = 3) -> Times:
    """Time ``run`` and ``reference`` in turns, ``repeats`` times, so that a machine that slows down slows both."""
    run()
    ratios, seconds, references = [], [], [_seconds(reference)]
    for _ in range(repeats):
        seconds.append(_seconds(run))
        references.append(_seconds(reference))
        ratios.append(seconds[-1] / ((references[-2] + references[-1]) / 2))
    return Times(*(statistics.median(values) for values in (ratios, seconds, references)))


def time_ratio(run: Callable[[], Any], reference: Callable[[], Any], repeats: int = 3) -> float:
    """How many times longer ``run`` takes than ``reference``; the median of ``repeats`` ratios."""
    return times_in_turns(run, reference, repeats).ratio


def _seconds(run: Callable[[], Any]) -> float:
    _wait()  # for what was asked of the device before
    began = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - began


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    storages = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())
