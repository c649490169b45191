"""The report of a finished run: ``metrics.json``, the model card, and a table on the terminal."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from vlkit.cli.show import Console, Table
from vlkit.engine.state import FitResult
from vlkit.memory import StepMemory


@dataclass
class Report:
    """The numbers of a run: the keys of ``metrics.json``.

    Attributes:
        task: name of the task.
        base: name of the base, or tower -> name.
        adapter: kind and options of the adapter.
        split: which split ``before`` and ``after`` were measured on.
        before, after: metric dicts of the base and of the adapted model.
        trainable_parameters, total_parameters: counts.
        saved_activation_bytes: saved activations of one step, parameters excluded.
        peak_memory_bytes: allocator peak on CUDA, peak resident size of the process on the CPU.
        train_seconds: time in training steps, resumed parts included.
        examples_per_second: training speed.
        seed: seed of the run.
        step_time_over_forward: time of a training step over that of the same forward without gradient.
        versions: versions of vlkit and its main dependencies; filled in if omitted.
        more: further keys that a task adds.
    """

    task: str
    base: Any
    adapter: Any
    split: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    trainable_parameters: int
    total_parameters: int
    saved_activation_bytes: int
    peak_memory_bytes: int
    train_seconds: float
    examples_per_second: float
    seed: int
    step_time_over_forward: float | None = None
    versions: dict[str, str] = field(default_factory=lambda: versions())
    more: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The report as ``metrics.json`` holds it; numbers that are not finite become null."""
        values = asdict(self)
        more = values.pop("more")
        return finite({**values, **more})


def versions() -> dict[str, str]:
    """Versions of vlkit, torch, open_clip, transformers and python; ``"absent"`` if not installed."""
    packages = {"vlkit": "vlkit", "torch": "torch", "open_clip": "open_clip_torch", "transformers": "transformers"}
    found = {}
    for name, package in packages.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return {**found, "python": platform.python_version()}


def finite(value: Any) -> Any:
    """Replace NaN and infinities by None, paths by text and tuples by lists, so that the value is strict JSON."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def model_card(report: Report, data: Mapping[str, Any]) -> str:
    """The Markdown card of an adapter: base, data, metrics table, memory, the exact command and versions."""
    values = report.as_json()
    adapter = values["adapter"]
    kind = adapter.get("kind", "") if isinstance(adapter, dict) else adapter
    rows = [
        f"| {key} | {_number(values['before'].get(key))} | {_number(values['after'].get(key))} |"
        for key in dict.fromkeys([*values["before"], *values["after"]])
    ]
    share = 100 * report.trainable_parameters / max(1, report.total_parameters)
    facts = {
        "Task": report.task,
        "Base": _inline(values["base"]),
        "Adapter": _inline(adapter),
        "Data": _inline(finite(dict(data))),
        "Trained": f"{report.trainable_parameters:,} of {report.total_parameters:,} parameters ({share:.2f} %)",
        "Saved activations": f"{report.saved_activation_bytes / 2**20:.1f} MiB per step, parameters excluded",
        "Peak memory": f"{report.peak_memory_bytes / 2**20:.1f} MiB",
        "Time": f"{report.train_seconds:.1f} s of training, {report.examples_per_second:.1f} examples/s",
        "Seed": str(report.seed),
        "Versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    return "\n".join(
        [
            f"# {report.task}: {kind} adapter",
            "",
            "Trained with vlkit. This folder holds only the adapter; it needs the base named below.",
            "",
            *(f"- {name}: {text}" for name, text in facts.items()),
            "",
            f"## Metrics ({report.split})",
            "",
            "| metric | before | after |",
            "|---|---:|---:|",
            *rows,
            "",
            "## Command",
            "",
            "```",
            command(),
            "```",
            "",
        ]
    )


def command() -> str:
    """The command line of this process, ready to paste into a shell."""
    return shlex.join(["python", *sys.argv])


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    return str(value)


def costs(result: FitResult, step: StepMemory, device: torch.device) -> dict[str, Any]:
    """Memory and time for :class:`Report`: those of the run, and those of one step."""
    return {
        "trainable_parameters": step.trainable_parameters,
        "total_parameters": step.total_parameters,
        "saved_activation_bytes": step.saved_bytes,
        # On the CPU the resident size of the process would mostly measure its libraries.
        "peak_memory_bytes": result.peak_memory_bytes if device.type == "cuda" else step.total_bytes,
        "train_seconds": result.train_seconds,
        "examples_per_second": result.examples_per_second,
        "step_time_over_forward": step.time_over_forward,
    }


def print_report(report: Report, folder: Path, columns: Mapping[str, str], before: str, note: str = "") -> None:
    """Print the numbers of a run and the path of the adapter.

    Args:
        report: the numbers.
        folder: the run folder.
        columns: heading -> metric; a cell is blank where a row lacks the metric.
        before: name of the first row, which shows ``report.before``; there is none if that is empty.
        note: text after the title of the table.
    """
    title = f"{report.split} split, percent" + (f", {note}" if note else "")
    table = Table("", *columns, title=title)
    rows = [(before, report.before)] if report.before else []
    for name, metrics in (*rows, (report.adapter["kind"], report.after)):
        table.add_row(name, *(f"{metrics[key]:.1f}" if key in metrics else "" for key in columns.values()))
    console = Console()
    console.print(table)
    console.print(
        f"trained {report.trainable_parameters:,} of {report.total_parameters:,} parameters; "
        f"saved activations {report.saved_activation_bytes / 2**20:.1f} MiB per step; "
        f"peak {report.peak_memory_bytes / 2**20:.0f} MiB; {report.train_seconds:.0f} s of training"
    )
    console.print(f"adapter: {folder}")
