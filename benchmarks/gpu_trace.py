"""Trace one step on a device: kernels by kind and by part of the step, and calls for which the host waits.

Used by ``gpu_checks.py``. On the CPU it traces operators instead of kernels, so that the code also runs there.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from vlkit.adapters.lean import recompute
from vlkit.adapters.sherl import pooled_lean, pooled_parts, tokens

STEP = "one step"
REST = "base, loss, optimizer"
KINDS = {
    "fused pooling": r"^pool(_end|_backward|_backward_end)?$",
    "attention": r"flash|fmha|attention|sdpa",
    "matrix product": r"gemm|nvjet|xmma|cutlass|gemv|splitk|dot_kernel|conv\w*(2d|fprop|dgrad|wgrad)|::\w*mm$",
    "optimizer": r"multi_tensor_apply|adam",
    "norm": r"layer_?norm|batch_?norm|gammabeta",
    "cast or copy": r"memcpy|memset|copy|::_?to\b|::cat|CatArray",
    "reduction": r"reduce|softmax|::sum|::amax|::mean",
    "elementwise": r"elementwise|relu|gelu|::(add|mul|div|clamp|exp|round|fill)",
}
"""Kind of kernel -> pattern of its name; the first match counts."""
PARTS: dict[str, tuple[Any, str]] = {
    "pool the taps": (pooled_lean.LeanPooledSherlAdapter, "merge"),
    "merge the layers": (pooled_lean, "attach"),
    "backward of the adapter": (pooled_parts.Backward, "run"),
    "reduce a tap": (tokens.SherlAdapter, "reduce"),
    "merge the taps": (tokens.SherlAdapter, "merge"),
    "second run": (recompute._Again, "backward"),
}
"""Part of a SHERL step -> its function; a part inside another one is listed under both names."""
LABELS = {STEP, *PARTS}
WAITS = re.compile(r"cuda(Stream|Device|Event)Synchronize|cu(Stream|Ctx|Event)Synchronize|Memcpy DtoH|cudaMemcpy$")


@dataclass(frozen=True)
class Kernel:
    """One kernel (on the CPU: one operator, without the operators it calls)."""

    name: str
    part: str
    milliseconds: float

    @property
    def kind(self) -> str:
        """One of :data:`KINDS`, or ``other``."""
        found = (kind for kind, pattern in KINDS.items() if re.search(pattern, self.name, re.IGNORECASE))
        return next(found, "other")


@dataclass(frozen=True)
class Trace:
    """One run under the profiler.

    Attributes:
        kernels: all kernels with a known caller.
        waits: name of a blocking call or copy -> count.
        device_milliseconds: time of everything on the device, with or without a known caller; 0 on the CPU.
    """

    kernels: list[Kernel]
    waits: dict[str, int]
    device_milliseconds: float

    def by_kind(self, part: str | None = None) -> dict[str, float]:
        """Milliseconds per kind of kernel, largest first, for one part or all parts."""
        return _sums((k.kind, k.milliseconds) for k in self.kernels if part in (None, k.part))

    def by_part(self) -> dict[str, float]:
        """Milliseconds per part of the step, largest first."""
        return _sums((k.part, k.milliseconds) for k in self.kernels)

    def top(self, count: int) -> list[dict[str, Any]]:
        """The kernels with the largest total time."""
        calls, times = Counter(k.name for k in self.kernels), _sums((k.name, k.milliseconds) for k in self.kernels)
        kinds = {k.name: k.kind for k in self.kernels}
        return [
            {"name": name[:160], "kind": kinds[name], "calls": calls[name], "ms": ms}
            for name, ms in list(times.items())[:count]
        ]


def trace(run: Callable[[], Any], device: torch.device) -> Trace:
    """Run once under the profiler; warm up before, so that the trace contains no set-up."""
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_cuda else [])
    wait_for(device)
    with profile(activities=activities) as profiler, _named_parts():
        with record_function(STEP):
            run()
        wait_for(device)  # outside the step, so that it does not count as a wait of the step
    events = profiler.events()
    step = next(event for event in events if event.name == STEP and event.device_type == DeviceType.CPU)
    inside = [e for e in events if _is_host(e) and step.time_range.start <= e.time_range.start < step.time_range.end]
    waits, kernels = Counter(event.name for event in inside if WAITS.search(event.name)), []
    for event in inside:
        found = [k for k in event.kernels if k.name not in LABELS]
        waits.update(k.name for k in found if WAITS.search(k.name))
        if on_cuda:
            kernels += [Kernel(k.name, _part_of(event), k.duration / 1000) for k in found]
        elif event.name not in LABELS:
            kernels.append(Kernel(event.name, _part_of(event), event.self_cpu_time_total / 1000))
    on_device = [e for e in events if not _is_host(e) and not e.is_user_annotation and e.name not in LABELS]
    return Trace(kernels, dict(waits), sum(e.time_range.elapsed_us() for e in on_device) / 1000)


def _is_host(event: Any) -> bool:
    return event.device_type == DeviceType.CPU


def _part_of(event: Any) -> str:
    """The parts that contain an event, outermost first."""
    names: list[str] = []
    while event is not None:
        names += [event.name] if event.name in PARTS else []
        event = event.cpu_parent
    return " / ".join(reversed(names)) or REST


@contextlib.contextmanager
def _named_parts() -> Iterator[None]:
    """Inside the context, the functions of :data:`PARTS` appear in traces under these names."""

    def named(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            with record_function(name):
                return function(*args, **options)

        return run

    with contextlib.ExitStack() as stack:
        for name, (owner, attribute) in PARTS.items():
            function = named(name, getattr(owner, attribute))
            is_static = isinstance(vars(owner).get(attribute), staticmethod)
            stack.enter_context(patch.object(owner, attribute, staticmethod(function) if is_static else function))
        yield


def _sums(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Key -> sum of its values, largest first."""
    sums: dict[str, float] = defaultdict(float)
    for key, value in pairs:
        sums[key] += value
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
