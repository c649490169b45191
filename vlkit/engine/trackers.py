"""Trackers for ``--log_to``: TensorBoard, Weights & Biases, Trackio and MLflow.

``log.jsonl`` in the run folder stays the record of a run; a tracker gets a copy. Each library is imported only if asked
for. Where it sends data, and under which account, is set as its own documentation says (WANDB_MODE,
MLFLOW_TRACKING_URI, …).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from vlkit.cli.show import one_line
from vlkit.engine.logger import Logger
from vlkit.errors import UserError

log = logging.getLogger(__name__)

PROJECT = "vlkit"


def open_trackers(names: str, task: str, folder: Path) -> list[Logger]:
    """The trackers that follow a run.

    Args:
        names: names of :data:`TRACKERS`, separated by commas; empty = none.
        task: name of the task; a prefix of the run's name.
        folder: the run folder, with its ``config.yaml``.

    Raises:
        UserError: a name is unknown, its library is not installed, or it refuses to start.
    """
    wanted = tracker_names(names)
    config = flat(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))) if wanted else {}
    found: list[Logger] = []
    for name in wanted:
        try:
            tracker = TRACKERS[name](folder, f"{task}-{folder.name}", config)
        except ImportError as error:
            raise UserError(
                f"--log_to {name}: needs a package that is not installed ({error}); pip install {PACKAGES[name]}"
            ) from None
        except Exception as error:  # the libraries raise errors of many types
            raise UserError(f"--log_to {name}: cannot start ({one_line(error)})") from error
        found.append(Guarded(name, tracker))
    return found


def tracker_names(names: str) -> list[str]:
    """The names in a comma-separated list.

    Raises:
        UserError: one is unknown.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in TRACKERS:
            raise UserError(f"--log_to {name}: no such tracker; choose from {', '.join(TRACKERS)}")
    return wanted


class Guarded:
    """A tracker whose failures are reported once and never stop the training."""

    def __init__(self, name: str, tracker: Logger) -> None:
        self._name, self._tracker, self._failed = name, tracker, False

    def log(self, values: Mapping[str, Any]) -> None:
        """Pass on one line of the log."""
        self._try(self._tracker.log, values)

    def finish(self, report: Mapping[str, Any]) -> None:
        """Pass on the final numbers."""
        self._try(self._tracker.finish, report)

    def _try(self, call: Callable[[Mapping[str, Any]], None], values: Mapping[str, Any]) -> None:
        if self._failed:
            return
        try:
            call(values)
        except Exception as error:  # such as a lost connection
            self._failed = True
            log.warning("--log_to %s: stopped (%s); training goes on, log.jsonl is complete", self._name, error)


class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._writer.add_text("config", yaml.safe_dump(dict(config)))

    def log(self, values: Mapping[str, Any]) -> None:
        """Write one line of the log."""
        for key, value in named(values).items():
            self._writer.add_scalar(key, value, values["step"])

    def finish(self, report: Mapping[str, Any]) -> None:
        """Write the final numbers and close the file."""
        for key, value in final(report).items():
            self._writer.add_scalar(key, value, 0)
        self._writer.close()


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        self._module, options = self._open(folder)
        self._module.init(project=PROJECT, name=name, config=dict(config), resume="allow", **options)

    def _open(self, folder: Path) -> tuple[Any, dict[str, Any]]:
        import wandb  # pyright: ignore[reportMissingImports]

        code = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
        return wandb, {"id": code, "dir": str(folder)}  # the same run after --resume

    def log(self, values: Mapping[str, Any]) -> None:
        """Send one line of the log."""
        self._module.log(named(values), step=values["step"])

    def finish(self, report: Mapping[str, Any]) -> None:
        """Send the final numbers and end the run."""
        self._module.log(final(report))
        self._module.finish()


class Trackio(Wandb):
    """A run of Trackio, which has the functions of Weights & Biases."""

    def _open(self, folder: Path) -> tuple[Any, dict[str, Any]]:
        import trackio  # pyright: ignore[reportMissingImports]

        return trackio, {}


class Mlflow:
    """A run of MLflow."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import mlflow  # pyright: ignore[reportMissingImports]

        self._module: Any = mlflow
        self._module.set_experiment(PROJECT)
        self._module.start_run(run_name=name)
        self._module.log_params({key: str(value)[:500] for key, value in config.items()})

    def log(self, values: Mapping[str, Any]) -> None:
        """Send one line of the log."""
        self._module.log_metrics(_mlflow_names(named(values)), step=int(values["step"]))

    def finish(self, report: Mapping[str, Any]) -> None:
        """Send the final numbers and end the run."""
        self._module.log_metrics(_mlflow_names(final(report)))
        self._module.end_run()


TRACKERS: dict[str, Callable[[Path, str, Mapping[str, Any]], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": Mlflow,
}
"""Name for ``--log_to`` -> the tracker."""
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}


def named(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a log line as ``train/loss`` or ``val/rsum``."""
    group = values.get("split", "train")
    return {f"{group}/{key}": float(v) for key, v in values.items() if key != "step" and _is_number(v)}


def final(report: Mapping[str, Any]) -> dict[str, float]:
    """The final numbers as ``before/rsum``, ``after/rsum`` and ``run/peak_memory_bytes``."""
    found = {f"run/{key}": float(value) for key, value in report.items() if _is_number(value)}
    for when in ("before", "after"):
        found |= {f"{when}/{key}": float(v) for key, v in report.get(when, {}).items() if _is_number(v)}
    return found


def flat(tree: Mapping[str, Any] | None, prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in (tree or {}).items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mlflow_names(values: Mapping[str, float]) -> dict[str, float]:
    """Names that MLflow accepts: it refuses ``@``."""
    return {key.replace("@", "_at_"): value for key, value in values.items()}
