"""Memory and time of one training step, and of the reference it is compared with."""

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

from vlkit.encoders.stored_weights import count_values
from vlkit.memory.live import LiveBytes, only_new_garbage

SLOW = 10.0
"""Seconds of a step whose time needs no repetition: what disturbs a measurement is shorter."""


@dataclass(frozen=True)
class StepMemory:
    """Memory of a training step in bytes, and parameter counts.

    Attributes:
        trainable_parameters: number of trainable values.
        total_parameters: number of values.
        parameter_bytes: parameters and buffers.
        optimizer_bytes: optimizer state.
        saved_bytes: saved activations at the end of the forward (:func:`vlkit.memory.saved_bytes`).
        peak_bytes: peak memory beyond parameters, optimizer state and inputs; gradients are included.
        time_over_forward: time of the step divided by that of the same forward without gradient; None if not measured.
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
    """Run two training steps and measure the second: the first one creates the optimizer state and warms up libraries.

    The weights change, so measure a copy if that matters. With fake tensors the first step only creates that state.

    Args:
        model: in training mode, without gradients.
        loss_of: runs the forward of one step and returns the loss.
        optimizer: optimizer of the trainable parameters of ``model``.
        timed: number of steps to time as well, alternating with forwards; where the first step took longer than
            :data:`SLOW`, one.
    """
    device = next(model.parameters()).device
    if _is_fake(device):
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    elif _seconds(lambda: train_step(loss_of, optimizer)) > SLOW:
        timed = min(timed, 1)
    saved = 0

    def step(live: LiveBytes) -> None:
        def look(loss: Tensor) -> None:
            nonlocal saved
            saved = live.kept_for(loss, model)

        train_step(loss_of, optimizer, look)

    with only_new_garbage():
        peak = peak_bytes(step, device)
    state = [value for values in optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    state += getattr(optimizer, "extra_tensors", list)()
    ratio = None
    if timed and not _is_fake(device):
        ratio = time_ratio(lambda: train_step(loss_of, optimizer), torch.no_grad()(loss_of), timed)
    return StepMemory(
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total_parameters=count_values(model),
        parameter_bytes=_bytes_of([*model.parameters(), *model.buffers()]),
        optimizer_bytes=_bytes_of(state),
        saved_bytes=saved,
        peak_bytes=peak,
        time_over_forward=ratio,
    )


def train_step(
    loss_of: Callable[[], Tensor], optimizer: Optimizer, before_backward: Callable[[Tensor], Any] | None = None
) -> None:
    """Forward, backward, update, and free the gradients; ``before_backward`` is called with the loss."""
    loss = loss_of()
    if before_backward:
        before_backward(loss)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def peak_bytes(run: Callable[[LiveBytes], Any], device: torch.device) -> int:
    """Peak memory in bytes of ``run``, beyond the memory in use before it.

    On CUDA it comes from the allocator; on the CPU and for fake tensors, from the live storages. ``run`` gets the
    counter of live storages (:class:`vlkit.memory.LiveBytes`).
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
    """Whether new tensors are fake."""
    return isinstance(torch.empty(0, device=device), FakeTensor)


@dataclass(frozen=True)
class Times:
    """Median times of runs that alternate with a reference.

    Attributes:
        ratio: time of a run divided by that of the reference.
        seconds: seconds per run.
        reference_seconds: seconds per run of the reference.
    """

    ratio: float
    seconds: float
    reference_seconds: float


def times_in_turns(run: Callable[[], Any], reference: Callable[[], Any], repeats: int = 3) -> Times:
    """Time ``run`` and ``reference`` alternately, ``repeats`` times, so that a slower machine affects both."""
    run()
    ratios, seconds, references = [], [], [_seconds(reference)]
    for _ in range(repeats):
        seconds.append(_seconds(run))
        references.append(_seconds(reference))
        ratios.append(seconds[-1] / ((references[-2] + references[-1]) / 2))
    return Times(*(statistics.median(values) for values in (ratios, seconds, references)))


def time_ratio(run: Callable[[], Any], reference: Callable[[], Any], repeats: int = 3) -> float:
    """Time of ``run`` divided by that of ``reference``; the median of ``repeats`` ratios."""
    return times_in_turns(run, reference, repeats).ratio


def _seconds(run: Callable[[], Any]) -> float:
    _wait()  # for earlier work on the device
    began = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - began


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def frozen_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and buffers that are not trained: the weights of the base."""
    return _bytes_of(t for t in (*model.parameters(), *model.buffers()) if not t.requires_grad)


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    storages = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())
