"""Compare predicted memory with the measured memory of real training steps.

    python benchmarks/estimator.py --json docs/results/estimator.json

Every step is contrastive, as in ``tasks/memory.py``. The saved activations of SHERL on the pooled embedding depend on
the data: the prediction is exact for rows that keep all values; for the others ("from above") it is an upper bound.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlkit.adapters.dtl import DtlOptions
from vlkit.adapters.linear import LinearOptions
from vlkit.adapters.lst.method import LstOptions
from vlkit.adapters.s2a import S2aOptions
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.adapters.side_attention import SideAttentionOptions
from vlkit.adapters.synqt import SynqtOptions
from vlkit.adapters.tuning import BitfitOptions, FullOptions, LoraOptions
from vlkit.adapters.unipt.options import UniptOptions
from vlkit.adapters.vqt import VqtOptions
from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.engine.report import versions
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.tasks.retrieval.step_bench import ContrastiveBench

MIB = 2**20
METHODS = {
    "linear": LinearOptions(),
    "SHERL, all values kept": SherlOptions(keep="all"),
    "SHERL, all values kept, int8 taps, chunks of 2": SherlOptions(keep="all", tap_dtype="int8", early_chunk=2),
    "SHERL, plain autograd": SherlOptions(lean=False),
    "SHERL on tokens": SherlOptions(handoff="tokens"),
    "SHERL on tokens, fp32 taps": SherlOptions(handoff="tokens", tap_dtype="fp32"),
    "SHERL on tokens, int8 taps, chunks of 2": SherlOptions(handoff="tokens", tap_dtype="int8", early_chunk=2),
    "UniPT": UniptOptions(),
    "LST": LstOptions(),
    "DTL": DtlOptions(),
    "VQT": VqtOptions(),
    "SynQT": SynqtOptions(),
    "side attention": SideAttentionOptions(),
    "S2A": S2aOptions(),
    "BitFit": BitfitOptions(),
    "LoRA": LoraOptions(),
    "LoRA + checkpointing": LoraOptions(checkpointing=True),
    "full": FullOptions(),
    "full, int4 activations": FullOptions(saved="int4"),
    "SHERL (from above)": SherlOptions(),
    "SHERL, int8 taps, chunks of 2 (from above)": SherlOptions(tap_dtype="int8", early_chunk=2),
}


@dataclass
class Config:
    """Compare predicted with measured memory."""

    json: Path | None = None
    """Also write the results to this JSON file."""
    bases: list[str] = field(default_factory=lambda: ["ViT-B-32", "RN50"])
    """Names of bases; methods that do not fit a tower are skipped."""
    batch_size: int = 6
    """Pairs per step."""
    text_length: int = 24
    """Tokens per text."""


def main(config: Config) -> None:
    rows, console = [], Console(stderr=True)
    for name in config.bases:
        real, fake = (ContrastiveBench(name, predicts, config.text_length, "cpu") for predicts in (False, True))
        for method, options in METHODS.items():
            try:
                measured, predicted = (bench.memory(bench.model(options), config.batch_size) for bench in (real, fake))
            except UserError as error:
                console.print(f"{name}, {method}: skipped ({error})", highlight=False)
                continue
            gc.collect()
            sizes = {
                f"{what}_{key}": getattr(memory, key)
                for what, memory in (("predicted", predicted), ("measured", measured))
                for key in ("saved_bytes", "peak_bytes")
            }
            rows.append({"base": name, "method": method, "batch_size": config.batch_size} | sizes)
            console.print(markdown(rows).splitlines()[-1], highlight=False)
        peaks = {"predicted_peak_bytes": fake.inference_peak(config.batch_size)}
        peaks["measured_peak_bytes"] = real.inference_peak(config.batch_size)
        rows.append({"base": name, "method": "inference", "batch_size": config.batch_size} | peaks)
    if config.json:
        write_json(config.json, {"versions": versions(), "text_length": config.text_length, "rows": rows})
    print(markdown(rows))
    exact = [row for row in rows if "from above" not in row["method"]]
    print(f"largest error of a peak: {max(abs(off_by(row)) for row in exact):.1%} of {len(exact)} rows")


def off_by(row: dict[str, Any]) -> float:
    """Relative error of the predicted peak: predicted / measured - 1."""
    return row["predicted_peak_bytes"] / row["measured_peak_bytes"] - 1


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| base | pairs | method | saved MiB: measured | predicted | peak MiB: measured | predicted | peak error |",
        "|---|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        names = [f"{what}_{key}" for key in ("saved_bytes", "peak_bytes") for what in ("measured", "predicted")]
        sizes = (f"{row[name] / MIB:.1f}" if name in row else "" for name in names)
        where = (row["base"], str(row["batch_size"]), row["method"])
        lines.append("| " + " | ".join([*where, *sizes, f"{off_by(row):+.1%}"]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, Config)
