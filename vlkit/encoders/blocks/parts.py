"""Where the parts of a transformer block are, as a row of :mod:`vlkit.encoders.families` says it of its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class AttentionParts:
    """Where the maps of an attention are: paths from its block.

    Attributes:
        query, key, value, out: the linear maps.
        norm: the norm of this sub-layer.
        heads: the number of heads.
        scaled: products of queries and keys are divided by the square root of a head's width.
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
    """Where the parts of a block with plain softmax attention are: paths from the block.

    Attributes:
        norm_first: norms stand before attention and MLP (T5), not after the residual sums (BERT).
        attention: self-attention.
        expand: the maps into the MLP; a block has those that its configuration asks for (two in a gated one).
        shrink: the map out of the MLP.
        mlp: modules that make up the MLP, in order, without norm and residual.
        mlp_norm: the norm of the MLP.
        widths: names in the configuration of every width that a narrower block divides.
        heads: name in the configuration of the number of heads, where it has to divide the first of ``widths``.
        cross: attention to an encoder's memory, in blocks that have it.
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
    """What is at a dotted path from ``module``; a number picks from a list. None if there is no such thing."""
    found: Any = module
    for name in path.split("."):
        if name.lstrip("-").isdigit():
            found = found[int(name)] if -len(found) <= int(name) < len(found) else None
        else:
            found = getattr(found, name, None)
        if found is None:
            return None
    return found
