"""Compare outputs and gradients of every method on a device with those on the CPU; used by ``gpu_checks.py``.

Both get the same weights, moved off their initial values so that every weight has a gradient, and the same batch, in
float32. The rounding error of float32 itself is measured against float64 on the CPU: near the kink of a ReLU, gradients
have limited precision on any device.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlkit.adapters import ADAPTERS
from vlkit.adapters.base import trained_state
from vlkit.adapters.sherl.options import SherlOptions
from vlkit.adapters.tuning import FullOptions, LoraOptions
from vlkit.encoders.load import load_base
from vlkit.encoders.text_side import text_side
from vlkit.engine.distributed import make_fabric
from vlkit.tasks.contrastive import gather_pairs, info_nce
from vlkit.tasks.fusion import FusionOptions
from vlkit.tasks.generation import shift_right, token_loss
from vlkit.tasks.retrieval.step_bench import ContrastiveBench
from vlkit.tasks.vqa.heads import GenerateOptions
from vlkit.tasks.vqa.model import build_model

log = logging.getLogger(__name__)

# Devices draw different random numbers; whole features are dropped by an option, dropout is set to 0 in each model.
CALM: dict[str, dict[str, float]] = {"synqt": {"drop_path": 0.0}}
PAIRS = {name: options(**CALM.get(name, {})) for name, options in ADAPTERS.items()} | {
    "lora, checkpointing": LoraOptions(checkpointing=True),
    "full, checkpointing": FullOptions(checkpointing=True),
    "sherl, active values": SherlOptions(keep="active"),
    "sherl, chunks of 2": SherlOptions(early_chunk=2),
    "sherl, int8 taps": SherlOptions(tap_dtype="int8"),
    "sherl, int8 taps, active values": SherlOptions(tap_dtype="int8", keep="active"),
    "sherl, bf16 taps": SherlOptions(tap_dtype="bf16"),
    "sherl, base gate": SherlOptions(base_gate=True),
    "sherl, without fused kernels": SherlOptions(fused=False),
    "sherl, plain autograd": SherlOptions(lean=False),
    "sherl on tokens": SherlOptions(handoff="tokens"),
    "sherl on tokens, int8 taps, chunks of 2": SherlOptions(handoff="tokens", tap_dtype="int8", early_chunk=2),
    "sherl on tokens, gated": SherlOptions(handoff="tokens", flavour="gated"),
    "sherl on tokens, mdetr": SherlOptions(handoff="tokens", flavour="mdetr"),
    "sherl on tokens, plain autograd": SherlOptions(handoff="tokens", lean=False),
}
"""Methods to compare in a contrastive step on the tiny base."""
GRIDS = ("sherl", "sherl, chunks of 2", "sherl on tokens", "unipt", "dtl", "lora")
"""Methods to compare in a contrastive step on a convolutional base."""
ANSWERS = ("sherl", "lora", "full")
"""Methods to compare in a step of answer generation with the tiny T5."""
OUTPUTS, EXACT, ROUNDED = 1e-4, 1e-3, 2e-2
"""Largest errors of outputs, of all gradients, and of all gradients with rounded taps, whose codes may flip."""
SLACK = 10
"""The gradient error may also be this many times the rounding error of float32 on the CPU."""

Outcome = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Outputs, and gradients of the trainable weights."""


def parities(device: str, grid_base: str | None) -> Iterator[dict[str, Any]]:
    """One row per method and model; ``grid_base``: name of a convolutional base, None skips it."""
    for base, names in (("tiny", PAIRS), (grid_base, GRIDS)):
        if base is not None:
            benches = [ContrastiveBench(base, False, None, kind, "32-true") for kind in ("cpu", device)]
            for name in names:
                yield {"base": base, "method": name} | compared(
                    name, partial(pairs_outcome, options=PAIRS[name]), benches
                )
    devices = [make_fabric(kind).device for kind in ("cpu", device)]
    for name in ANSWERS:
        row = compared(name, partial(answers_outcome, options=PAIRS[name]), devices)
        yield {"base": "tiny, tiny T5 writing answers", "method": name} | row


def pairs_outcome(bench: ContrastiveBench, dtype: torch.dtype, options: Any, size: int = 4) -> Outcome:
    """Outputs and gradients of a contrastive step."""
    pixels, ids = bench.batch(size)

    def loss_of(images: Tensor, texts: Tensor, scale: Tensor, *_: Any) -> Tensor:
        return info_nce(gather_pairs(images, texts, torch.arange(size, device=bench.device)), scale)

    return outcome(bench.model(options), dtype, (pixels, ids), loss_of)


def answers_outcome(device: torch.device, dtype: torch.dtype, options: Any) -> Outcome:
    """Outputs and gradients of a step that trains a T5 to answer questions about images."""
    base = load_base("tiny")
    text = text_side("tiny", base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fusion = FusionOptions(width=64, layers=1, heads=2, dropout=0.0)
        model = build_model(base, text, options, GenerateOptions(queries=2), fusion, 0)
    pixels = torch.randn(2, 3, *base.preprocess.size, generator=torch.Generator().manual_seed(0)).to(device)
    ids = text.tokenize(["what is red", "how many balls are there", "is it a cat"]).to(device)
    targets = text.tokenize(["a ball", "two", "no"]).to(device)
    batch = pixels, ids, torch.tensor([0, 1, 1], device=device), shift_right(targets, 0)
    return outcome(model.to(device), dtype, batch, lambda logits: token_loss(logits, targets, text.pad_id))


def outcome(model: nn.Module, dtype: torch.dtype, batch: tuple[Tensor, ...], loss_of: Callable[..., Tensor]) -> Outcome:
    """Outputs and gradients of a step in ``dtype``, as float64 on the CPU; ``loss_of`` maps model outputs to a loss."""
    model.train()
    generator = torch.Generator().manual_seed(0)
    for weight in trained_state(model).values():  # many gradients are exactly 0 at the initial values
        if weight.is_floating_point() and weight.ndim:
            weight.add_(torch.randn(weight.shape, generator=generator).to(weight), alpha=0.02)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # devices draw different random numbers
    returned = model.to(dtype)(*(x.to(dtype) if x.is_floating_point() else x for x in batch))
    returned = returned if isinstance(returned, tuple) else (returned,)
    loss_of(*returned).backward()
    outputs = {str(i): x.detach() for i, x in enumerate(returned) if isinstance(x, Tensor)}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return tuple({name: x.double().cpu() for name, x in each.items()} for each in (outputs, gradients))


def compared(name: str, outcome_of: Callable[..., Outcome], places: Sequence[Any]) -> dict[str, Any]:
    """Errors of outputs and gradients at the second place, and whether they are within the limits."""
    try:
        expected, found = (outcome_of(place, torch.float32) for place in places)
        exact = outcome_of(places[0], torch.float64)
    except Exception as problem:  # a failing method must not stop the others
        log.exception("%s", name)
        return {"passed": False, "failed": type(problem).__name__}
    rounding = together(expected[1], exact[1])
    limit = max(ROUNDED if "int8" in name or "bf16" in name else EXACT, SLACK * rounding)
    output = max(error(found[0][key], value) for key, value in expected[0].items())
    gradient = together(found[1], expected[1])
    return {
        "output_error": output,
        "gradient_error": gradient,
        "worst_gradient_error": worst(found[1], expected[1]),
        "rounding_error": rounding,
        "gradient_limit": limit,
        "passed": output < OUTPUTS and gradient < limit,
    }


def error(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Largest difference relative to the largest value, or to ``floor`` if that is larger."""
    return float((found - expected).abs().max() / max(float(expected.abs().max()), floor, 1e-30))


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Error of the worst weight's gradient."""
    if found.keys() != expected.keys():
        return float("inf")
    floor = max(float(g.abs().max()) for g in expected.values()) / 1000  # ignores tiny gradients
    return max(error(found[name], gradient, floor) for name, gradient in expected.items())


def together(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Error of all gradients as one vector."""
    if found.keys() != expected.keys():
        return float("inf")
    apart = torch.stack([(found[name] - gradient).norm() for name, gradient in expected.items()]).norm()
    return float(apart / torch.stack([gradient.norm() for gradient in expected.values()]).norm())
