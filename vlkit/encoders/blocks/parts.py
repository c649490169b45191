"""Paths to the parts of a transformer block, as listed in the rows of :mod:`vlkit.encoders.families`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class AttentionParts:
    """Paths from a block to the linear maps of its attention.

    Attributes:
        query, key, value, out: the linear maps.
        norm: the norm of this sub-layer.
        heads: the number of heads.
        scaled: dot products of queries and keys are divided by the square root of the head width.
    """

    query: str
    key: str
    value: str
    out: str
    norm: str
    heads: str
    scaled: bool = True


@dataclass(frozen=True)
class BlockParts:
    """Paths from a block with plain softmax attention to its parts.

    Attributes:
        norm_first: pre-norm (T5); False = post-norm (BERT).
        attention: self-attention.
        expand: the input maps of the MLP; the configuration decides which of them a block has (two in a gated MLP).
        shrink: the output map of the MLP.
        mlp: modules of the MLP, in order, without norm and residual.
        mlp_norm: the norm of the MLP.
        widths: configuration keys of all widths that a narrow block divides.
        heads: configuration key of the number of heads, if it has to divide the first of ``widths``.
        cross: cross-attention to an encoder's memory, in blocks that have it.
    """

    norm_first: bool
    attention: AttentionParts
    expand: tuple[str, ...]
    shrink: str
    mlp: tuple[str, ...]
    mlp_norm: str
    widths: tuple[str, ...]
    heads: str | None = None
    cross: AttentionParts | None = None


def part_at(module: nn.Module, path: str) -> Any:
    """The object at a dotted path from ``module``; a number indexes a list. None if the path does not exist."""
    found: Any = module
    for name in path.split("."):
        if name.lstrip("-").isdigit():
            found = found[int(name)] if -len(found) <= int(name) < len(found) else None
        else:
            found = getattr(found, name, None)
        if found is None:
            return None
    return found
