"""Compare the gradients of memory-efficient (lean) SHERL with those of plain autograd, per tap format.

    python benchmarks/lean_gradients.py --json docs/results/lean_gradients.json

Both implementations get the same weights, moved off their initial values so that every weight has a gradient, and the
same batch. The error of a weight is its largest difference relative to its largest gradient; the table lists the worst
weight and the error of all gradients as one vector.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlkit.adapters.base import trained_state
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.cli.config import run
from vlkit.engine.report import versions
from vlkit.files import write_json
from vlkit.tasks.contrastive import gather_pairs, info_nce
from vlkit.tasks.retrieval.step_bench import ContrastiveBench

FLAVOURS = {"SHERL": SherlOptions(), "SHERL on tokens": SherlOptions(handoff="tokens", dropout=0.0)}
ROWS = [(torch.float64, "fp32"), (torch.float32, "fp32"), (torch.float32, "bf16"), (torch.float32, "int8")]
"""dtype of the weights, and number format of the taps (``fp32`` keeps their dtype)."""


@dataclass
class Config:
    """Compare the gradients of memory-efficient SHERL with those of plain autograd."""

    json: Path | None = None
    """Also write the results to this JSON file."""
    bases: list[str] = field(default_factory=lambda: ["ViT-B-32"])
    """Names of bases; random weights are sufficient."""
    batch_size: int = 8
    """Pairs per batch."""
    device: str = "auto"
    """Device: auto, cpu or cuda."""


def main(config: Config) -> None:
    rows: list[dict[str, Any]] = []
    for name in config.bases:
        bench = ContrastiveBench(name, False, device=config.device, precision="32-true")
        for flavour, options in FLAVOURS.items():
            for dtype, tap_dtype in ROWS:
                plain = woken(bench, dataclasses.replace(options, lean=False), dtype)
                lean = woken(bench, dataclasses.replace(options, tap_dtype=tap_dtype), dtype)
                lean.load_state_dict(plain.state_dict())
                expected, found = (gradients(bench, model, config.batch_size) for model in (plain, lean))
                row = {"base": name, "method": flavour, "weights": str(dtype).removeprefix("torch."), "taps": tap_dtype}
                rows.append(row | errors(found, expected))
                print(markdown(rows).splitlines()[-1], flush=True)
    if config.json:
        write_json(config.json, {"versions": versions(), "rows": rows})
    print(markdown(rows))


def woken(bench: ContrastiveBench, options: SherlOptions, dtype: torch.dtype) -> nn.Module:
    """A model with perturbed trainable weights: at the initial values many gradients are exactly 0."""
    model = bench.model(options).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for weight in trained_state(model).values():
        if weight.ndim:
            weight.add_(torch.randn(weight.shape, generator=generator).to(weight), alpha=0.02)
    return model


def gradients(bench: ContrastiveBench, model: nn.Module, size: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and the gradients of the trainable weights."""
    pixels, ids = bench.batch(size)
    images, texts, scale, _ = model(pixels.to(next(model.parameters()).dtype), ids)
    loss = info_nce(gather_pairs(images, texts, torch.arange(size, device=bench.device)), scale)
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def errors(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> dict[str, float]:
    """Relative errors of the loss, of the worst weight's gradient, and of all gradients together."""
    (loss, ours), (plain_loss, theirs) = found, expected
    floor = max(float(g.abs().max()) for g in theirs.values()) / 1000  # ignores tiny gradients
    apart = {name: (ours[name] - g).double() for name, g in theirs.items()}
    worst = max(float(apart[n].abs().max()) / max(float(g.abs().max()), floor) for n, g in theirs.items())
    norms = [torch.stack([g.double().norm() for g in group.values()]).norm() for group in (apart, theirs)]
    return {
        "loss_error": float((loss - plain_loss).abs() / plain_loss.abs()),
        "worst_gradient_error": worst,
        "gradient_error": float(norms[0] / norms[1]),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| base | method | weights | taps | loss | worst weight | all gradients |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for row in rows:
        numbers = (row[key] for key in ("loss_error", "worst_gradient_error", "gradient_error"))
        words = (row[key] for key in ("base", "method", "weights", "taps"))
        lines.append("| " + " | ".join([*words, *(f"{number:.1e}" for number in numbers)]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, Config)
