"""Errors of gradients from compressed saved activations, and the bytes that are saved.

    python benchmarks/compressed_gradients.py --output docs/results/compressed_gradients.md

First table: each operation alone, on random input in double precision; the error is the root mean square of the
difference to the exact gradient, relative to the exact one. Second table: blocks of a vision transformer with random
weights, trained by each method that trains inside the base; the bytes are those of one block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlkit.adapters import ADAPTERS
from vlkit.adapters.facts import kinds_with
from vlkit.adapters.saved.functions import CURVES, attention, curve, layer_norm, linear, softmax
from vlkit.adapters.saved.mode import compressed
from vlkit.cli.config import run
from vlkit.encoders.stage import stage_vision
from vlkit.errors import UserError
from vlkit.files import write_json, write_text
from vlkit.memory import saved_bytes

ReGELU2 = (
    (-3.1858810036855245, -0.001178821281161997, 3.190832613414926),
    (
        -0.04922261145617846,
        1.0979632065417297,
        -0.048740595085551286,
    ),
)
"""Breaks and steps of the derivative that LowMemoryBP (ICML 2024) uses for GELU: a public 2-bit baseline."""


@dataclass
class Config:
    """Measure gradient errors and bytes of compressed saved activations."""

    output: Path | None = None
    """Also write both tables to this Markdown file, and the numbers to a JSON file beside it."""
    width: int = 384
    """Width of the blocks."""
    layers: int = 1
    """Number of blocks."""
    image_size: int = 224
    """Side of the images in pixels; the patches have 32."""
    batch_size: int = 32
    """Images per step."""

    def __post_init__(self) -> None:
        if self.width % 64 or self.width < 64:
            raise UserError(f"--width {self.width}: give a multiple of 64, the width of a head")
        if self.image_size % 32 or self.image_size < 32:
            raise UserError(f"--image_size {self.image_size}: give a multiple of 32, the side of a patch")


def main(config: Config) -> None:
    operations, blocks = operation_rows(), []
    print(table(operations), flush=True)
    for kind in kinds_with("trains_base"):
        blocks += block_rows(kind, config)
    print(table(blocks))
    if config.output:
        command = "python benchmarks/compressed_gradients.py --output docs/results/compressed_gradients.md"
        about = (
            f"{config.layers} block(s) of width {config.width}, {config.image_size} px images in patches of 32 px, "
            f"batches of {config.batch_size}, random weights. Bytes are those of a block, without parameters; LoRA's "
            "include the weights that peft merges for open_clip's attention. The gradient is that of a random direction "
            "of the output, all trained values as one vector."
        )
        parts = ["# Gradients from compressed activations", f"Printed by `{command}`.", "## Operations"]
        parts += [table(operations), "## Blocks", about, table(blocks)]
        write_text(config.output, "\n\n".join(parts) + "\n")
        write_json(config.output.with_suffix(".json"), {"operations": operations, "blocks": blocks})


# --- operations -------------------------------------------------------------------------------------------------------

Operation = Callable[[Tensor, int | None], Tensor]
"""(input, bits; None = plain) -> output."""


def operation_rows() -> list[dict[str, Any]]:
    """One row per operation, input and format."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale + shift

    rows = []
    for name in ("gelu", "silu", "quick_gelu", "relu"):
        rows += [
            _row(name, "N(0, 1)", lambda x, bits, n=name: curve(n, x, bits), random(4096, 64), bits)
            for bits in (2, 4, 8)
        ]
    x = random(4096, 64)
    rows.append(_row("gelu, fixed bounds", "N(0, 1)", lambda x, b: curve("gelu", x, b, bounds="fixed"), x, 4))
    rows.append(_row("gelu, stochastic", "N(0, 1)", lambda x, b: curve("gelu", x, b, stochastic=True), x, 4))
    rows.append(
        {"operation": "gelu, ReGELU2", "input": "N(0, 1)", "bits": 2, "error": regelu2_error(x), "bits saved": 2.0}
    )
    skewed = random(4096, 64, scale=0.5, shift=-1.0)
    rows.append(_row("gelu", "N(-1, 0.25)", lambda x, b: curve("gelu", x, b), skewed, 4))
    rows.append(_row("gelu, fixed bounds", "N(-1, 0.25)", lambda x, b: curve("gelu", x, b, bounds="fixed"), skewed, 4))
    for scale in (1.4, 2.0, 3.0):
        logits = random(4096, 64, scale=scale)
        rows += [_row("softmax", f"64 keys, N(0, {scale:g}^2)", softmax, logits, bits) for bits in (4, 8)]
    tokens, gain = random(1024, 768), torch.rand(768, generator=generator, dtype=torch.float64) + 0.5
    rows += [
        _row("layer norm", "N(0, 1), width 768", lambda x, b: layer_norm(x, gain, None, 1e-6, b), tokens, b)
        for b in (4, 8)
    ]
    q, k, v = (random(8, 4, 64, 64) for _ in range(3))
    rows.append(_row("attention, to queries", "N(0, 1), 64 tokens", lambda x, b: attention(x, k, v, b), q, 4))
    rows.append(_row("attention, to keys", "N(0, 1), 64 tokens", lambda x, b: attention(q, x, v, b), k, 4))
    rows.append(_row("attention, to values", "N(0, 1), 64 tokens", lambda x, b: attention(q, k, x, b), v, 4))
    weight = random(64, 768)
    rows += [
        _row(
            "linear map, to its weight",
            "1,024 tokens N(0, 1)",
            lambda w, b: linear(tokens, w, None, b),
            weight,
            b,
            tokens.numel(),
        )
        for b in (4, 8)
    ]
    return rows


def _row(name: str, source: str, operation: Operation, x: Tensor, bits: int, count: int = 0) -> dict[str, Any]:
    """``count``: values that the saved bits are divided by; default: those of ``x``."""
    error, saved = gradient_error(operation, x, bits)
    return {
        "operation": name,
        "input": source,
        "bits": bits,
        "error": error,
        "bits saved": saved / (count or x.numel()),
    }


def gradient_error(operation: Operation, x: Tensor, bits: int) -> tuple[float, float]:
    """The relative error of the gradient to ``x``, and bits saved in all; outputs must be equal."""
    found, seen = [], []
    for form in (None, bits):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
            seen.clear()
            output = operation(leaf, form)
        generator = torch.Generator().manual_seed(1)
        output.backward(torch.randn(output.shape, generator=generator, dtype=output.dtype))
        found.append((output.detach(), leaf.grad))
    (exact, expected), (output, got) = found
    if not torch.equal(exact, output):
        raise AssertionError("the forward of a compressed operation differs from the plain one")
    saved = sum(8.0 * t.nbytes for t in seen if t.data_ptr() != leaf.data_ptr())  # a weight exists anyway
    return float((got - expected).square().mean().sqrt() / expected.square().mean().sqrt()), saved


def regelu2_error(x: Tensor) -> float:
    """Relative error of ReGELU2's derivative on the inputs ``x``, under a random gradient."""
    leaf = x.clone().requires_grad_()
    CURVES["gelu"].run(leaf).sum().backward()
    breaks, steps = ReGELU2
    slope = sum(step * (x > place) for place, step in zip(breaks, steps, strict=True))
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    return float(((slope - leaf.grad) * gradient).norm() / (leaf.grad * gradient).norm())


# --- blocks -----------------------------------------------------------------------------------------------------------


def block_rows(kind: str, config: Config) -> list[dict[str, Any]]:
    """Saved bytes and gradients of a tower trained by ``kind``, in each format and with checkpointing."""
    torch.manual_seed(0)
    tower = VisionTransformer(
        config.image_size, 32, config.width, config.layers, config.width // 64, 4.0, output_dim=512
    )
    images = torch.randn(config.batch_size, 3, config.image_size, config.image_size)
    options, rows = ADAPTERS[kind], []
    forms = [{"saved": saved} for saved in ("fp32", "int8", "int4")]
    if "checkpointing" in {field.name for field in dataclasses.fields(options)}:
        forms.insert(1, {"checkpointing": True, "saved": "fp32"})
    exact: Tensor | None = None
    for form in forms:
        torch.manual_seed(0)
        model = options(**form).build(stage_vision(deepcopy(tower))).train()
        wake(model)
        gradient, saved = gradient_and_bytes(model, images)
        exact = gradient if exact is None else exact
        plain = rows[0]["saved MiB"] if rows else saved / 2**20
        rows.append(
            {
                "method": kind,
                "saved": "checkpointing" if form.get("checkpointing") else form["saved"],
                "saved MiB": saved / 2**20,
                "of plain": saved / 2**20 / plain,
                "cosine": float(torch.cosine_similarity(gradient, exact, dim=0)),
                "error": float((gradient - exact).norm() / exact.norm()),
            }
        )
    return rows


def wake(model: nn.Module) -> None:
    """Move what trains off its first values: behind a zero matrix, gradients are zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)


def gradient_and_bytes(model: nn.Module, images: Tensor) -> tuple[Tensor, int]:
    """The gradient of all trained values as one vector (float64), and the saved activations of the last block."""

    def loss() -> Tensor:
        pooled = model(images).pooled
        return (pooled * torch.randn(pooled.shape, generator=torch.Generator().manual_seed(1))).sum()

    loss().backward()
    gradient = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    with torch.no_grad():
        stream = model.base.embed(images)
    start = stream.hidden.requires_grad_()

    def last_block() -> Tensor:
        # A copy made inside: the block's input counts, unless nothing in the block needs it.
        state = stream.replace(hidden=start + 0)
        if model.checkpointing:
            return checkpoint(model.base.block, model.base.depth - 1, state, use_reentrant=False).hidden.sum()
        with compressed(model.saved):
            return model.base.block(model.base.depth - 1, state).hidden.sum()

    return gradient, saved_bytes(model, last_block)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    names = list(rows[0])
    lines = [
        "| " + " | ".join(names) + " |",
        "|" + "|".join("---" if isinstance(rows[0][n], str) else "---:" for n in names) + "|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(_text(row[name]) for name in names) + " |" for row in rows)])


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.1f}" if value >= 2 else f"{value:.4f}"


if __name__ == "__main__":
    run(main, Config)
