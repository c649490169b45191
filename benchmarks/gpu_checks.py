"""Check the CUDA paths: no synchronisation inside a step, the same numbers as on the CPU, and a profile of a step.

    python benchmarks/gpu_checks.py --json gpu_checks.json
    python benchmarks/gpu_checks.py --json checks.json --device cpu --waits_base tiny --profile_base tiny --batch_size 4

- Waits: how often the host waits for the device in one step of each method, according to a profiler trace and CUDA's
  own debug mode; SHERL with default options must not wait.
- Profile: kernel time by kind and by part of a SHERL step, and for inference.
- Parity: outputs and gradients of every method in float32 (without TF32) on the device and on the CPU, from the same
  weights; the error is the largest difference relative to the largest value.

Exits with 1 if SHERL waits or a parity check exceeds its limit. With ``--device cpu`` the CPU is compared with itself,
to test the script.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from gpu_parity import parities
from gpu_trace import KINDS, trace, wait_for
from training_step import METHODS, VARIANTS

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.engine.distributed import make_fabric
from vlkit.engine.hardware import machine
from vlkit.engine.report import versions
from vlkit.files import write_json
from vlkit.tasks.retrieval.step_bench import ContrastiveBench

log = logging.getLogger(__name__)

STEPS = METHODS | VARIANTS
DEFAULT = "SHERL"
WAITING = [
    *(DEFAULT, "SHERL, active values", "SHERL, int8 taps", "SHERL, int8 taps, chunks of 8", "SHERL on tokens"),
    *("SHERL on tokens, int8 taps, chunks of 8", "linear", "LoRA", "LoRA + checkpointing", "full"),
]
PROFILED = [DEFAULT, "SHERL on tokens"]


@dataclass
class Config:
    """Check the CUDA paths."""

    json: Path
    """Output JSON file."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto = CUDA if available."""
    waits_base: str = "ViT-B-32"
    """Base for the check of waits; random weights are sufficient."""
    profile_base: str = "ViT-L-14"
    """Base for the profiles."""
    grid_base: str | None = "RN50"
    """Convolutional base for the parity check; null skips it."""
    batch_size: int = 128
    """Pairs per profiled step."""


def main(config: Config) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    console = Console(stderr=True, soft_wrap=True)
    place = make_fabric(config.device).device
    table: dict[str, Any] = {"machine": machine(place), "versions": versions(), "cuda": torch.version.cuda}
    failed = []
    for name, rows in (("waits", waits), ("profile", profiles), ("parity", parity)):
        table[name] = []
        try:
            for row in rows(config):
                table[name].append(row)
                write_json(config.json, table)
                console.print(f"{name}: {row['base']}, {row['method']}", highlight=False)
        except Exception:  # a failing check must not stop the others
            log.exception("%s", name)
            failed.append(name)
    print(markdown(table))
    failed += [
        f"{DEFAULT} waits" for row in table["waits"] if row["method"] == DEFAULT and (row["waits"] or row["warnings"])
    ]
    failed += [f"parity of {row['method']} on {row['base']}" for row in table["parity"] if not row["passed"]]
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


# --- waiting for the device ---


def waits(config: Config) -> Iterator[dict[str, Any]]:
    """One row per method: blocking calls and copies, and the warnings of CUDA's debug mode with their places."""
    bench, size = ContrastiveBench(config.waits_base, False, None, config.device), min(32, config.batch_size)
    for name in WAITING:
        step = bench.step(bench.model(STEPS[name]), size)
        step()
        step()
        warned = warned_places(step) if bench.device.type == "cuda" else Counter()
        found = trace(step, bench.device)
        yield {
            **{"base": config.waits_base, "batch_size": size, "method": name},
            **{"precision": bench.precision, "waits": found.waits, "warnings": sum(warned.values())},
            "places": [f"{place} x {count}" for place, count in warned.most_common(6)],
        }


def warned_places(step: Callable[[], Any]) -> Counter[str]:
    """Lines of code for which CUDA's debug mode reports a synchronisation, with counts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [w for w in caught if "called a synchronizing" in str(w.message)]
    return Counter(f"{'/'.join(Path(w.filename).parts[-3:])}:{w.lineno}" for w in found)


# --- profile ---


def profiles(config: Config) -> Iterator[dict[str, Any]]:
    """One row for inference and one per profiled method: kernel milliseconds by kind and part."""
    bench = ContrastiveBench(config.profile_base, False, None, config.device)
    place = {"base": config.profile_base, "batch_size": config.batch_size}
    yield place | {"method": "inference"} | profiled(bench.inference(config.batch_size), bench.device)
    for name in PROFILED:
        step = bench.step(bench.model(STEPS[name]), config.batch_size)
        yield place | {"method": name} | profiled(step, bench.device)


def profiled(run: Callable[[], Any], device: torch.device, repeats: int = 5) -> dict[str, Any]:
    """Step time without the profiler, and the kernels of a run with it."""
    run()
    run()
    seconds = []
    for _ in range(repeats):
        wait_for(device)
        began = time.perf_counter()
        run()
        wait_for(device)
        seconds.append(time.perf_counter() - began)
    found = trace(run, device)
    return {
        "step_ms": statistics.median(seconds) * 1000,
        "device_ms": found.device_milliseconds,
        "kernel_ms": sum(found.by_kind().values()),
        "kernels": len(found.kernels),
        "by_kind": found.by_kind(),
        "by_part": {
            part: {"ms": ms, "kernels": sum(k.part == part for k in found.kernels), "by_kind": found.by_kind(part)}
            for part, ms in found.by_part().items()
        },
        "top": found.top(15),
    }


def parity(config: Config) -> Iterator[dict[str, Any]]:
    """One row per method and model: error of the device relative to the CPU."""
    return parities(config.device, config.grid_base)


# --- tables ---


def markdown(table: dict[str, Any]) -> str:
    """All rows as three Markdown tables."""
    lines = ["| base | pairs | method | host waits | warnings |", "|---|---:|---|---|---|"]
    for row in table["waits"]:
        calls = ", ".join(f"{name} x {count}" for name, count in row["waits"].items()) or "none"
        warned = f"{row['warnings']} ({', '.join(row['places'])})" if row["warnings"] else "none"
        lines.append(f"| {row['base']} | {row['batch_size']} | {row['method']} | {calls} | {warned} |")
    kinds = [*KINDS, "other"]
    lines += ["", f"| base | pairs | method | ms per step | kernels | kernel ms | {' | '.join(kinds)} |"]
    lines += ["|---|---:|---|" + "---:|" * (3 + len(kinds))]
    for row in table["profile"]:
        where = f"| {row['base']} | {row['batch_size']} |"
        first = f"{row['step_ms']:.1f} | {row['kernels']} | {row['kernel_ms']:.1f}"
        lines.append(f"{where} {row['method']} | {first} | {shares(row['by_kind'], row['kernel_ms'])} |")
        for part, found in row["by_part"].items() if len(row["by_part"]) > 1 else ():
            count = found.get("kernels", "")
            lines.append(
                f"{where} - {part} | | {count} | {found['ms']:.1f} | {shares(found['by_kind'], row['kernel_ms'])} |"
            )
    lines += ["", "| base | method | outputs | all gradients | worst weight | float32 rounding | passed |"]
    lines += ["|---|---|---:|---:|---:|---:|---|"]
    for row in table["parity"]:
        errors = (row.get(key) for key in ("output_error", "gradient_error", "worst_gradient_error", "rounding_error"))
        numbers = " | ".join(row.get("failed", "") if value is None else f"{value:.1e}" for value in errors)
        lines.append(f"| {row['base']} | {row['method']} | {numbers} | {'yes' if row['passed'] else 'NO'} |")
    return "\n".join(lines)


def shares(by_kind: dict[str, float], whole: float) -> str:
    """Time of each kind in percent of the step."""
    return " | ".join(f"{100 * by_kind.get(kind, 0) / max(whole, 1e-9):.1f}" for kind in [*KINDS, "other"])


if __name__ == "__main__":
    run(main, Config)
