"""The run folder: the files of a run and their paths. Only process 0 writes."""

from __future__ import annotations

import itertools
import json
import logging
import os
import platform
import secrets
import time
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import yaml

from vlkit.adapters.adapter_files import AdapterFiles
from vlkit.cli.config import to_yaml
from vlkit.engine.checkpoint import STATE_FILE, remove_leftovers
from vlkit.engine.curves import draw_curves
from vlkit.engine.distributed import gather_objects, node_count
from vlkit.engine.report import Report, finite, model_card
from vlkit.engine.trackers import flat
from vlkit.errors import UserError, some
from vlkit.files import read_text, write_json, write_text

log = logging.getLogger(__name__)

# Flags that may differ between a run and its continuation: they do not change results.
FREE_FLAGS = frozenset({"output", "resume", "device", "workers", "log_every", "log_to", "checkpoint_every", "on_stop"})
FREE_FLAGS |= {"snapshot_every", "snapshot_redundancy", "snapshot_memory"}
SHARED_SECONDS = 10.0  # network file systems show new files late


class RunFolder:
    """The files of one run. Only process 0 writes to it.

    Attributes:
        path: the folder.
        checkpoint: path of the resume state.
    """

    def __init__(self, path: str | Path, writes: bool = True) -> None:
        self.path, self.writes = Path(path), writes
        self.checkpoint = self.path / "checkpoint"

    def log(self, **values: Any) -> None:
        """Append one line to ``log.jsonl`` and flush it at once."""
        if self.writes:
            with open(self.path / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(finite(values), allow_nan=False) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of ``log.jsonl``; a line that was cut off by a kill is left out."""
        path = self.path / "log.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        found = []
        for line in lines[:-1]:  # the part after the last newline is empty or cut off
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                log.warning("%s: a damaged line was left out", path)
        return found

    def was_solved(self) -> bool:
        """Whether the log is that of a run without a training step (a head in closed form), which has no checkpoint and
        is soon made again.
        """
        lines = self.read_log()
        return bool(lines) and not any("loss" in line for line in lines)

    def rewind_log(self, step: int, evaluated: int) -> None:
        """Drop the lines of steps and evaluations after the checkpoint, so that none appears twice."""
        if self.writes:
            kept = [line for line in self.read_log() if line["step"] <= (evaluated if "split" in line else step)]
            write_text(self.path / "log.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def token(self, fresh: bool) -> str:
        """A random name of this run, for what it stores outside its folder; ``fresh`` begins a new one."""
        path = self.checkpoint / "run"
        if fresh or not path.exists():
            write_text(path, secrets.token_hex(8))
        return path.read_text(encoding="utf-8").strip()

    def draw_curves(self, primary: str) -> None:
        """Draw ``curves.png`` from the log: loss, learning rate and the metric ``primary`` over steps."""
        if self.writes:
            draw_curves(self.path / "curves.png", self.read_log(), primary)

    def write_report(self, report: Report, data: Mapping[str, Any]) -> None:
        """Write ``metrics.json`` and the model card ``README.md``.

        Args:
            report: the run's numbers.
            data: the training data, for the card: ``name``, ``root``, counts per split, source.
        """
        if self.writes:
            write_json(self.path / "metrics.json", report.as_json())
            write_text(self.path / "README.md", model_card(report, data))


def open_run(config: Any, task: str, fabric: Any, free: Set[str] = FREE_FLAGS) -> RunFolder:
    """Create the run folder, or open the one to continue, and write ``config.yaml``.

    Args:
        config: the run's config; its ``output`` may be None (a new folder ``runs/<task>/<time>``).
        task: name of the task.
        fabric: the run's Fabric; all processes get the same folder. Processes that torchrun has started again continue
            the run without ``--resume``.
        free: flags that may differ from those of the run to continue.

    Raises:
        UserError: the folder holds a run and ``--resume`` was not given; ``--resume`` without ``--output``; or the run
            in the folder had another config (names the changed keys).
    """
    if config.resume and config.output is None:
        raise UserError("--resume needs --output DIR, the run folder to continue")
    if config.output is None and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
        raise UserError("torchrun --max-restarts needs --output DIR: a run that starts again must find its folder")
    # A node that replaces a lost one counts no restart, but the others do.
    resume = config.resume or any(gather_objects(fabric, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0))
    path = Path(config.output or fabric.broadcast(new_folder(task)))
    if path.exists() and not path.is_dir():
        raise UserError(f"--output {path}: is a file; give a folder")
    folder = RunFolder(path, writes=fabric.is_global_zero)
    # A run that was refused before its first checkpoint left only a config.
    holds_run = (path / "config.yaml").exists() and (folder.checkpoint / STATE_FILE).exists()
    holds_adapter = AdapterFiles.find(path).config.exists()
    if (holds_run or holds_adapter) and not resume:
        raise UserError(f"--output {path}: already holds a run; add --resume to continue it or choose another folder")
    if holds_adapter and not holds_run and not folder.was_solved():
        raise UserError(f"--resume: {path} holds an adapter and no checkpoint to continue from; choose another folder")
    if holds_run:
        changed = changed_keys(read_config(path / "config.yaml"), to_yaml(config), free)
        if changed:
            raise UserError(
                f"--resume: {some(changed, 12)} in {path / 'config.yaml'}; give the same flags or another --output"
            )
    elif config.resume:
        log.warning("--resume: no run in %s yet; starting from the beginning", path)
    # All processes read the folder before process 0 writes.
    fabric.barrier()
    if folder.writes:
        remove_leftovers(folder.checkpoint)
        if not holds_run:
            write_text(path / "config.yaml", to_yaml(config))
    _require_shared(path, fabric)
    return folder


def _require_shared(path: Path, fabric: Any) -> None:
    """Refuse a run folder that is not the same on every node: a resumed run would begin at different steps.

    Raises:
        UserError: a process of another node does not see a file that process 0 wrote.
    """
    if node_count() == 1:
        return
    mark = path / fabric.broadcast(f".shared-{secrets.token_hex(8)}")
    if fabric.is_global_zero:
        mark.touch()
    fabric.barrier()
    end = time.monotonic() + SHARED_SECONDS
    while not (seen := mark.exists()) and time.monotonic() < end:
        time.sleep(0.2)
    blind = [node for sees, node in gather_objects(fabric, (seen, platform.node())) if not sees]
    if fabric.is_global_zero:
        mark.unlink()
    if blind:
        raise UserError(
            f"--output {path}: {some(sorted(set(blind)))} cannot see what process 0 wrote there, and would miss the "
            "checkpoint of a resumed run; give a folder on a file system that all nodes share"
        )


def new_folder(task: str) -> str:
    """``runs/<task>/<time>``, with a number appended if two runs start in the same second."""
    name = f"runs/{task}/{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = (name if n == 1 else f"{name}-{n}" for n in itertools.count(1))
    return next(candidate for candidate in candidates if not Path(candidate).exists())


def read_config(path: Path) -> str:
    """The config of the run to continue, as YAML.

    Raises:
        UserError: the file is damaged.
    """
    text = read_text(path, "the run cannot be continued; choose another --output")
    try:
        whole = isinstance(yaml.safe_load(text), dict)
    except yaml.YAMLError:
        whole = False
    if not whole:
        raise UserError(f"--resume: {path} is damaged, so the run cannot be continued; choose another --output")
    return text


def changed_keys(old: str, new: str, free: Set[str] = FREE_FLAGS) -> list[str]:
    """Compare two configs in YAML: ``["lr was 0.1, now 0.2", …]`` for every key but the free ones."""
    before, after = flat(yaml.safe_load(old)), flat(yaml.safe_load(new))
    return [
        f"{key} was {before.get(key, 'absent')}, now {after.get(key, 'absent')}"
        for key in dict.fromkeys([*before, *after])
        if key not in free and before.get(key) != after.get(key)
    ]
