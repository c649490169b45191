"""The run folder: config, log, curves, metrics and model card. Only process 0 writes."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import logging
import math
import platform
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vlkit.cli.config import to_yaml
from vlkit.engine.checkpoint import CONFIG_FILE, remove_leftovers
from vlkit.errors import UserError, some
from vlkit.files import whole_file, write_json, write_text

log = logging.getLogger(__name__)

# Flags that may differ between a run and its continuation: they change no number.
FREE_FLAGS = frozenset({"output", "resume", "device", "workers", "log_every", "checkpoint_every"})


@dataclass
class Report:
    """What a run reports: the keys of ``metrics.json``.

    Attributes:
        task: name of the task.
        base: name of the base, or tower -> name.
        adapter: kind and options of the adapter.
        split: which split ``before`` and ``after`` were measured on.
        before, after: metric dicts of the base and of the adapted model.
        trainable_parameters, total_parameters: counts.
        saved_activation_bytes: kept for backward in one step, parameters excluded.
        peak_memory_bytes: allocator peak on CUDA, peak resident size of the process on the CPU.
        train_seconds: time in training steps, resumed parts included.
        examples_per_second: training speed.
        seed: seed of the run.
        step_time_over_forward: time of a training step over that of the same forward without gradient.
        versions: of vlkit and what it stands on; filled in if left out.
        more: further keys of a task.
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
    """Versions of vlkit, torch, open_clip, transformers and python; ``"absent"`` for what is not installed."""
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


class RunFolder:
    """The files of one run. A folder opened by another process than number 0 writes nothing.

    Attributes:
        path: the folder.
        checkpoint: where the resume state lies.
    """

    def __init__(self, path: str | Path, writes: bool = True) -> None:
        self.path, self.writes = Path(path), writes
        self.checkpoint = self.path / "checkpoint"

    def log(self, **values: Any) -> None:
        """Append one line to ``log.jsonl`` and hand it to the system at once."""
        if self.writes:
            with open(self.path / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(finite(values), allow_nan=False) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of ``log.jsonl``; one that a kill cut off is left out."""
        path = self.path / "log.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        found = []
        for line in lines[:-1]:  # what follows the last newline is empty or cut off
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                log.warning("%s: a damaged line was left out", path)
        return found

    def rewind_log(self, step: int, evaluated: int) -> None:
        """Drop the lines of steps (evaluations) after those the checkpoint knows, so that none will be there twice."""
        if self.writes:
            kept = [line for line in self.read_log() if line["step"] <= (evaluated if "split" in line else step)]
            write_text(self.path / "log.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def draw_curves(self, primary: str) -> None:
        """Draw ``curves.png`` from the log: loss, learning rate and the metric ``primary`` over steps."""
        if self.writes:
            lines = self.read_log()
            train = [line for line in lines if "split" not in line]
            evaluations = [line for line in lines if "split" in line]
            # Takes most of a second to import, and whoever serves a model draws no curves.
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure

            figure = Figure(figsize=(12, 3.5))
            figure.subplots_adjust(left=0.06, right=0.98, bottom=0.16, top=0.9, wspace=0.25)
            panels = (("loss", train, "."), ("lr", train, ""), (primary, evaluations, "o"))
            for axes, (key, source, marker) in zip(figure.subplots(1, 3), panels, strict=True):
                points = [(line["step"], line[key]) for line in source if line.get(key) is not None]
                axes.plot(*zip(*points, strict=True), marker=marker) if points else None
                axes.set(xlabel="step", title=key if source is train else f"{key} ({_splits(source)})")
                axes.grid(alpha=0.3)
            with whole_file(self.path / "curves.png") as temporary:
                FigureCanvasAgg(figure).print_png(str(temporary))

    def write_report(self, report: Report, data: Mapping[str, Any]) -> None:
        """Write ``metrics.json`` and the model card ``README.md``.

        Args:
            report: the run's numbers.
            data: what the adapter was trained on, for the card: ``name``, ``root``, counts per split, source.
        """
        if self.writes:
            write_json(self.path / "metrics.json", report.as_json())
            write_text(self.path / "README.md", model_card(report, data))


def _splits(lines: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(line["split"] for line in lines)) or "no evaluation yet"


def open_run(config: Any, task: str, fabric: Any) -> RunFolder:
    """Make the run folder, or find the one to go on with, and write ``config.yaml``.

    Args:
        config: the run's config; its ``output`` may be None (a new folder ``runs/<task>/<time>``).
        task: name of the task.
        fabric: the run's Fabric; all processes get the same folder.

    Raises:
        UserError: the folder holds a run and ``--resume`` was not given; ``--resume`` without ``--output``; or the run
            there had another config, whose changed keys are named.
    """
    if config.resume and config.output is None:
        raise UserError("--resume needs --output DIR, the run folder to go on with")
    path = Path(config.output or fabric.broadcast(_new_folder(task)))
    if path.exists() and not path.is_dir():
        raise UserError(f"--output {path}: is a file; give a folder")
    folder = RunFolder(path, writes=fabric.is_global_zero)
    holds_run = (path / "config.yaml").exists()
    if (holds_run or (path / CONFIG_FILE).exists()) and not config.resume:
        raise UserError(f"--output {path}: already holds a run; add --resume to go on with it or choose another folder")
    if holds_run:
        changed = changed_keys((path / "config.yaml").read_text(encoding="utf-8"), to_yaml(config))
        if changed:
            raise UserError(
                f"--resume: {some(changed, 12)} in {path / 'config.yaml'}; give the same flags or another --output"
            )
    elif config.resume:
        log.warning("--resume: no run in %s yet; starting from the beginning", path)
    # Every process has looked before the first one writes.
    fabric.barrier()
    if folder.writes:
        remove_leftovers(folder.checkpoint)
        if not holds_run:
            write_text(path / "config.yaml", to_yaml(config))
    return folder


def _new_folder(task: str) -> str:
    """``runs/<task>/<time>``, with a number behind it if two runs start in the same second."""
    name = f"runs/{task}/{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = (name if n == 1 else f"{name}-{n}" for n in itertools.count(1))
    return next(candidate for candidate in candidates if not Path(candidate).exists())


def changed_keys(old: str, new: str) -> list[str]:
    """Compare two configs in YAML: ``["lr was 0.1, now 0.2", …]`` for every key that changes the numbers."""
    before, after = _flat(yaml.safe_load(old)), _flat(yaml.safe_load(new))
    return [
        f"{key} was {before.get(key, 'absent')}, now {after.get(key, 'absent')}"
        for key in dict.fromkeys([*before, *after])
        if key not in FREE_FLAGS and before.get(key) != after.get(key)
    ]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in (tree or {}).items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


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
        "Kept for backward": f"{report.saved_activation_bytes / 2**20:.1f} MiB in one step, parameters excluded",
        "Peak memory": f"{report.peak_memory_bytes / 2**20:.1f} MiB",
        "Time": f"{report.train_seconds:.1f} s of training, {report.examples_per_second:.1f} examples/s",
        "Seed": str(report.seed),
        "Versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }
    return "\n".join(
        [
            f"# {report.task}: {kind} adapter",
            "",
            "Trained with vlkit. Only the adapter is here; it needs the base named below.",
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
