"""Optimizers and learning rate schedules that a run can choose from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from vlkit.engine.library_optimizers import adamw_8bit, apollo

OptimizerKind = Literal["adamw", "sgd", "adamw8bit", "apollo", "mezo"]
ScheduleKind = Literal["cosine", "linear", "step", "constant"]


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], lr: float, weight_decay: float, kind: OptimizerKind = "adamw"
) -> torch.optim.Optimizer:
    """An optimizer over ``parameters``; see :func:`is_decayed`."""
    decayed = [p for name, p in parameters.items() if is_decayed(name, p)]
    others = [p for name, p in parameters.items() if not is_decayed(name, p)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return _OPTIMIZERS[kind]([group for group in groups if group["params"]], lr)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, and not to a table of biases (T5's ``relative_attention_bias``)."""
    return parameter.ndim >= 2 and "bias" not in name


# Fused: reads each weight once instead of five times, without temporary tensors of its size.
_OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]] = {
    "adamw": lambda groups, lr: torch.optim.AdamW(groups, lr=lr, fused=True),
    "adamw8bit": adamw_8bit,
    "apollo": apollo,
    "sgd": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=True),
}


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def lr_factor(kind: ScheduleKind, step: int, steps: int, warmup: int, decay_at: Sequence[float] = ()) -> float:
    """Factor on the peak learning rate in ``step`` (0-based): linear warm-up over ``warmup`` steps, then ``kind``.

    With kind ``step``, each share of all ``steps`` in ``decay_at`` that is over divides the rate by ten.
    """
    if step < warmup:
        return (step + 1) / warmup
    if kind == "step":
        return 0.1 ** sum(step >= round(share * steps) for share in decay_at)
    return _SCHEDULES[kind](step - warmup, max(1, steps - warmup))


# (steps since the warm-up, total steps after it) -> factor.
_SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "cosine": lambda done, steps: 0.5 * (1 + math.cos(math.pi * done / steps)),
    "linear": lambda done, steps: 1 - done / steps,
    "constant": lambda done, steps: 1.0,
}
