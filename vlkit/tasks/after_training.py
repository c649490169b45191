"""Flags of the evaluation scripts: apply part of an adapter, and measure it on data that its run never saw."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlkit.cli.show import Console, Table
from vlkit.data.manifest import Dataset
from vlkit.errors import UserError
from vlkit.tasks.load import load
from vlkit.tasks.task import Task

Measure = Callable[[Any, Dataset, str], Mapping[str, float]]
"""(pipeline, dataset, split) -> metrics, larger is better."""


@dataclass(kw_only=True)
class Mixed:
    """Flags of scripts that apply part of an adapter."""

    mix: float = 1.0
    """How much of the adapter to apply: 0 = the base with the trained head, 1 = the adapter as trained."""
    mix_beta: float = 0.0
    """Added to --mix in proportion to the depth of a block, for methods that train the base (LiNeS): --mix 0.3
    --mix_beta 0.7 scales the first block's update by 0.3 and keeps the last one's."""


@dataclass(kw_only=True)
class AfterTraining(Mixed):
    """Flags of the evaluation scripts."""

    also: list[Path] = field(default_factory=list)
    """Also measure on these prepared datasets of the same task, without and with the adapter: what it gained or forgot
    on data that the run never saw."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to compute on."""
    json: Path | None = None
    """Write the metrics to this file."""


def load_mixed(folder: Path, task: str, config: AfterTraining) -> Any:
    """The pipeline of a saved adapter, applied to the degree that the flags ask for."""
    return load(folder, config.device, task=task, mix=config.mix, mix_beta=config.mix_beta)


def refuse_without_model(config: AfterTraining) -> None:
    """Refuse the flags that need an adapter where a base alone is measured.

    Raises:
        UserError: ``--mix``, ``--mix_beta`` or ``--also`` was given.
    """
    given = {"--mix": config.mix != 1.0, "--mix_beta": config.mix_beta != 0.0, "--also": bool(config.also)}
    if any(given.values()):
        flag = next(flag for flag, there in given.items() if there)
        raise UserError(f"{flag}: a base alone has no adapter; give --model DIR, or leave {flag} out")


def other_datasets(
    config: AfterTraining, task: Task, split: str, records_of: Callable[[Dataset, str], Any] = Dataset.records
) -> dict[str, Dataset]:
    """The datasets of ``--also`` by name; read before the first measurement, so that errors in them come first.

    Args:
        config: the flags.
        task: the task.
        split: the split of each dataset.
        records_of: reads the records of a split.

    Raises:
        UserError: a folder holds no dataset of the task, or lacks the split.
    """
    found: dict[str, Dataset] = {}
    for root in config.also:
        dataset = task.dataset(root)
        records_of(dataset, split)
        name = dataset.name if dataset.name not in found else str(root)
        found[name] = dataset
    return found


def measure_others(
    folder: Path, config: AfterTraining, task: Task, split: str, datasets: Mapping[str, Dataset], measure: Measure
) -> dict[str, Any]:
    """Measure an adapter on other datasets, without and with it, and print both.

    Args:
        folder: the adapter.
        config: the flags.
        task: the task.
        split: the split of each dataset.
        datasets: see :func:`other_datasets`.
        measure: the task's metrics.

    Returns:
        ``{"also": {name: {"root", "split", "before", "after"}}}``, or nothing without ``--also``.
    """
    if not datasets:
        return {}
    # One model at a time: methods that train the base need one each.
    metrics: dict[str, dict[str, Mapping[str, float]]] = {name: {} for name in datasets}
    for when, mix, beta in (("before", 0.0, 0.0), ("after", config.mix, config.mix_beta)):
        pipeline = load(folder, config.device, task=task.name, mix=mix, mix_beta=beta)
        for name, dataset in datasets.items():
            metrics[name][when] = measure(pipeline, dataset, split)
        del pipeline
    table = Table("dataset", "metric", title=f"other data, split {split}: the base with the trained head, and adapted")
    for heading in ("base", "adapted", "change"):
        table.add_column(heading, justify="right")
    for name, both in metrics.items():
        for metric in dict.fromkeys(task.scores.values()):
            if metric in both["after"]:
                before, after = both["before"][metric], both["after"][metric]
                table.add_row(name, metric, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}")
    Console().print(table)
    return {
        "also": {
            name: {"root": str(datasets[name].root), "split": split, **{k: dict(v) for k, v in both.items()}}
            for name, both in metrics.items()
        }
    }
