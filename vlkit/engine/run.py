"""One training run of a script: its config, device and processes, and its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_fabric import Fabric
from torch import Tensor, nn

from vlkit.adapters.mix import set_side_mix, side_mix
from vlkit.cli.show import Console
from vlkit.engine.checkpoint import copy_trained, load_trained, save_adapter, unwrap
from vlkit.engine.config import RunConfig
from vlkit.engine.distributed import make_fabric
from vlkit.engine.hardware import keep_freed_memory
from vlkit.engine.loader import EpochLoader
from vlkit.engine.logger import Logger
from vlkit.engine.mezo import measure_zeroth_step
from vlkit.engine.optim import make_optimizer
from vlkit.engine.report import Report, costs, print_report
from vlkit.engine.run_folder import RunFolder, open_run
from vlkit.engine.state import FitResult
from vlkit.engine.trackers import open_trackers
from vlkit.memory import StepMemory, measure_step

Forward = Callable[..., Any]
LossOf = Callable[[Forward, Any, float], "Tensor | Mapping[str, Tensor]"]
"""A script's loss: (the model's forward, a batch on the device, epochs done so far as a fraction) -> a scalar, or named
scalars, of which training minimises ``loss``. It must call the model only through ``forward``: measurements and
preparation pass other forwards."""


@dataclass
class Run:
    """An open run; see :meth:`open`.

    Attributes:
        config: the flags.
        task: name of the task.
        fabric: device, precision and processes.
        folder: the run folder.
        loggers: trackers that follow the run in addition to its own log.
    """

    config: RunConfig
    task: str
    fabric: Fabric
    folder: RunFolder
    loggers: Sequence[Logger] = ()

    @classmethod
    def open(cls, config: RunConfig, task: str, loggers: Sequence[Logger] = ()) -> Run:
        """Set up device and processes, seed every generator, and open the run folder (with ``--resume``, an existing
        one).

        Raises:
            UserError: the device is not available; the folder already holds a run, or with ``--resume`` a run with
                another config; a tracker of ``--log_to`` cannot start.
        """
        # Differences of two losses need full precision.
        whole = config.optimizer == "mezo" and config.precision == "auto"
        fabric = make_fabric(config.device, "32-true" if whole else config.precision, config.seed)
        folder = open_run(config, task, fabric)
        keep_freed_memory()
        own = open_trackers(config.log_to, task, folder.path) if fabric.is_global_zero else []
        return cls(config, task, fabric, folder, [*loggers, *own])

    def log(self, **values: Any) -> None:
        """Add a line to ``log.jsonl``, and pass it to the trackers."""
        self.folder.log(**values)
        if self.fabric.is_global_zero:
            for logger in self.loggers:
                logger.log(values)

    def finish(
        self,
        result: FitResult,
        model: nn.Module,
        adapter_config: Mapping[str, Any],
        *,
        split: str,
        before: Mapping[str, float],
        memory: StepMemory,
        data: Mapping[str, Any],
        columns: Mapping[str, str],
        first_row: str = "zero-shot",
        note: str = "",
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Save the adapter, write ``metrics.json`` and the model card, and print the numbers of the run.

        Args:
            result: the result of ``fit``.
            model: the model with the best weights.
            adapter_config: content of ``vlkit_adapter.json``; its ``metrics`` are those of the adapted model.
            split: the split that ``before`` and the metrics were measured on.
            before: metrics without the adapter; empty where they were not measured.
            memory: memory of one step (:func:`step_memory`).
            data: what the adapter was trained on, for the model card.
            columns, first_row, note: see :func:`vlkit.engine.report.print_report`.
            more: further keys of ``metrics.json``; ``before_is`` says what ``before`` is, and is left out with it.
        """
        if not self.fabric.is_global_zero:
            return
        mix = side_mix(model)
        save_adapter(self.folder.path, model, {**adapter_config, **({} if mix == 1.0 else {"mix": mix})})
        further = {name: value for name, value in (more or {}).items() if before or name != "before_is"}
        report = Report(
            task=self.task,
            base=adapter_config["base"],
            adapter=next(iter(adapter_config["adapters"].values())),
            split=split,
            before=before,
            after=adapter_config["metrics"],
            **costs(result, memory, self.fabric.device),
            seed=self.config.seed,
            more={**further, **({} if result.mix == 1.0 else {"mix": result.mix})},
        )
        self.folder.write_report(report, data)
        for logger in self.loggers:
            logger.finish(report.as_json())
        print_report(report, self.folder.path, columns, first_row, note)


def step_memory(run: Run, model: nn.Module, loader: EpochLoader, loss_of: LossOf) -> StepMemory:
    """Memory and time of one training step, measured on the first batch. Weights and statistics are restored."""
    if run.fabric.is_global_zero:
        Console(stderr=True).print("measuring memory and time of a training step")
    core = unwrap(model)
    part = side_mix(core)
    set_side_mix(core, 1.0)  # a training step applies all of the adapter
    batch = run.fabric.to_device(next(iter(loader.batches(0, 1))))
    before, training = copy_trained(core), core.training

    def forward(*inputs: Any, **options: Any) -> Any:
        with run.fabric.autocast():
            return core(*inputs, **options)

    def loss() -> Tensor:
        found = loss_of(forward, batch, 0.0)
        return found["loss"] if isinstance(found, Mapping) else found

    if run.config.optimizer == "mezo":
        memory = measure_zeroth_step(core, loss, run.config.zeroth, run.fabric.device)
        load_trained(core, before)
        set_side_mix(core.train(training), part)
        return memory
    trained = {name: p for name, p in core.named_parameters() if p.requires_grad}
    memory = measure_step(core.train(), loss, make_optimizer(trained, 0.0, 0.0, run.config.optimizer), timed=3)
    load_trained(core, before)
    set_side_mix(core.train(training), part)
    return memory
