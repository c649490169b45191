"""Scale what an adapter adds to its base after training: one factor, or one per block (LiNeS).

Where the weights of the base changed, or modules were inserted into it (full, BitFit, LoRA, peft), each tensor moves
from its value in the base towards the trained one: WiSE-FT, or with ``beta`` LiNeS (Wang et al., ICLR 2025,
arXiv:2410.17146), whose factor grows with the depth of the block. Methods beside a frozen base scale what they add to
the hidden state or to the pooled embedding. Heads keep their trained weights, except maps that start as the identity
on the base's own embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlkit.adapters.base import AdaptedEncoder
from vlkit.adapters.tuning import TunedEncoder
from vlkit.encoders.blocks.anatomy import Opaque
from vlkit.encoders.staged import StagedEncoder
from vlkit.errors import UserError

# The name that peft gives to the tensors it inserts, and those of them that leave the base as it is at their start.
_INSERTED = re.compile(r"\.default(\.|$)")
_FROM_BASE = re.compile(
    r"\.(lora_B|lora_embedding_B|lora_magnitude_vector|lora_E|ia3_l|vera_lambda_b|oft_[rR]|boft_R|boft_s"
    r"|ln_tuning_layers)\."
)
# Inserted tensors with a random start, whose product with those above is the update.
_FACTOR = re.compile(r"\.(lora_A|lora_embedding_A|vera_lambda_d|vera_A|vera_B|ranknum)\b")


@dataclass(frozen=True)
class Mix:
    """How much of an adapter to apply.

    Attributes:
        alpha: 0 = the base, 1 = the adapter as trained; other finite values extrapolate.
        beta: added to the factor in proportion to the depth of the block: block l of L gets
            ``alpha + beta * l / (L - 1)``; tensors outside the blocks get ``alpha``.
        side: factor on what methods beside a frozen base add, chosen in training and recorded with the adapter (its
            saved tensors hold the rest of that choice); ``alpha`` comes on top.
    """

    alpha: float = 1.0
    beta: float = 0.0
    side: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("--mix", self.alpha), ("--mix_beta", self.beta)):
            if not math.isfinite(value):
                raise UserError(f"{name} {value}: give a finite number; 0 = the base, 1 = the adapter as trained")

    @property
    def whole(self) -> bool:
        """Whether this is the adapter as trained."""
        return self.as_saved and self.side == 1.0

    @property
    def as_saved(self) -> bool:
        """Whether this is the adapter as it was saved."""
        return self.alpha == 1.0 and self.beta == 0.0

    def factor(self, block: int | None, depth: int) -> float:
        """Factor of 0-based block ``block`` of ``depth``; None = a tensor outside the blocks. One block is the last."""
        if block is None:
            return self.alpha
        return self.alpha + self.beta * (block / (depth - 1) if depth > 1 else 1.0)


class Trained(dict[str, Tensor]):
    """The tensors of a saved adapter, and how much of it to apply when they are loaded into a model.

    Attributes:
        mix: see :class:`Mix`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], mix: Mix | None = None) -> None:
        super().__init__(tensors)
        self.mix = mix or Mix()

    @property
    def tag(self) -> str:
        """Text that tells this mix from others in names of models; empty for the adapter as saved."""
        return "" if self.mix.as_saved else f" mix {self.mix.alpha:g} {self.mix.beta:g}"


def merging_alpha(parts: list[Mapping[str, Tensor]], merged: Mapping[str, Tensor]) -> float:
    """LiNeS's factor for the first block when task vectors are merged.

    ``(|sum of the parts|_1 / |merged|_1) / N``, which is 1/N if ``merged`` is the plain sum.

    Args:
        parts: N task vectors, name -> trained minus pre-trained tensor.
        merged: the merged task vector (sum, TIES, consensus, …), with the same names.

    Raises:
        ValueError: there are no parts, or ``merged`` is zero.
    """
    if not parts:
        raise ValueError("give at least one task vector and a merged one that is not zero")
    total = sum(float(torch.stack([part[name].double() for part in parts]).sum(0).abs().sum()) for name in merged)
    size = sum(float(tensor.double().abs().sum()) for tensor in merged.values())
    if not size:
        raise ValueError("give at least one task vector and a merged one that is not zero")
    return total / size / len(parts)


def set_side_mix(model: nn.Module, alpha: float) -> None:
    """Scale what the methods beside a frozen base add in ``model``."""
    for module in model.modules():
        if isinstance(module, AdaptedEncoder):
            module.mix = alpha


def side_mix(model: nn.Module) -> float:
    """How much of what they add the methods beside a frozen base apply in ``model``; 1 if there are none.

    Saved tensors hold the chosen part of everything else, but not this factor.
    """
    return next((module.mix for module in model.modules() if isinstance(module, AdaptedEncoder)), 1.0)


@torch.no_grad()
def mixed(model: nn.Module, tensors: Mapping[str, Tensor], mix: Mix) -> dict[str, Tensor]:
    """The tensors to load so that ``model`` applies the adapter to the degree ``mix``.

    Methods beside a frozen base are scaled in the model itself (:attr:`AdaptedEncoder.mix`).

    Args:
        model: built on its base, before the trained tensors are loaded.
        tensors: the trained tensors by name.
        mix: see :class:`Mix`.

    Raises:
        UserError: part of the model cannot be scaled, or not per block.
    """
    if mix.whole:
        return dict(tensors)
    start, found = dict(model.named_parameters(remove_duplicate=False)), dict(tensors)
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        if reason := getattr(module, "never_mixed", ""):
            raise UserError(f"--mix: {reason}; leave it out")
        if isinstance(module, AdaptedEncoder):
            if mix.beta:
                raise UserError(
                    "--mix_beta: scales the blocks of a trained base, and here the base is frozen; use --mix alone"
                )
            module.mix = mix.alpha * mix.side
        elif isinstance(module, TunedEncoder):
            found |= _tuned(module, prefix, start, tensors, mix)
        elif isinstance(getattr(module, "base", None), StagedEncoder):
            raise UserError(f"--mix: {type(module).__name__} has no part that can be scaled; leave it out")
        for name in getattr(module, "starts_at_base", ()):
            if (key := prefix + name) in tensors:
                found[key] = _towards(start[key], tensors[key], mix.alpha)
    return found


def _tuned(
    encoder: TunedEncoder, prefix: str, start: Mapping[str, Tensor], tensors: Mapping[str, Tensor], mix: Mix
) -> dict[str, Tensor]:
    """Scaled tensors of a tower that trains inside its base, by name."""
    block_of = _blocks(encoder.base) if mix.beta else {}
    found = {}
    for key in (key for key in tensors if key.startswith(prefix) and key in start):
        name = key.removeprefix(prefix)
        if not name.startswith("base."):
            block = encoder.adds_at(name)
            if block is not None:
                found[key] = mix.factor(block, encoder.base.depth) * tensors[key]
            continue
        if _INSERTED.search(key):
            if _FACTOR.search(key):
                continue
            is_product = ".lora_B." in key or ".lora_embedding_B." in key
            if not _FROM_BASE.search(key) or (is_product and bool(start[key].any())):
                raise UserError(f"--mix: not known how to scale {key}; use a method such as lora, or leave it out")
        factor = mix.factor(block_of.get(id(start[key])), encoder.base.depth)
        found[key] = _towards(start[key], tensors[key], factor)
    return found


def _blocks(base: StagedEncoder) -> dict[int, int]:
    """Id of each parameter inside a block -> number of that block."""
    try:
        return {id(p): i for i in range(base.depth) for p in base.transformer_block(i).parameters()}
    except Opaque as error:
        raise UserError(f"--mix_beta: {error}; use --mix alone") from None


def _towards(start: Tensor, trained: Tensor, factor: float) -> Tensor:
    """``start + factor * (trained - start)``, exactly ``trained`` for 1."""
    if factor == 1.0:
        return trained
    first = start.detach().to(trained.device, trained.dtype)
    return first + factor * (trained - first)
