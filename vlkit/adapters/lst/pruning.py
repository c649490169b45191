"""Initialise the narrow blocks of a side network from the most important weights of the frozen base.

LST (NeurIPS 2022) prunes the blocks in order. Each group of weights (query, key and value together; attention output;
MLP in; MLP out) keeps the input columns that belong to the units kept by the previous group, and the fraction
``1 / reduction`` of its output rows with the largest summed importance; the next group reads these units.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from vlkit.encoders.blocks.anatomy import Anatomy, Attention, Dense, anatomy_of
from vlkit.encoders.blocks.narrow import NarrowBlocks
from vlkit.encoders.staged import StagedEncoder
from vlkit.encoders.stored_layers import with_open_weights

Importance = Mapping[str, Tensor]
"""Name of a weight in ``encoder.model`` -> importance of each of its values, same shape, non-negative."""


def magnitude(encoder: StagedEncoder) -> dict[str, Tensor]:
    """Importance without data: the absolute value of each weight."""
    return {name: weight.detach().abs() for name, weight in encoder.model.named_parameters()}


def fisher(encoder: StagedEncoder, losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """Importance from data: squared gradients, summed over examples (the diagonal of the empirical Fisher matrix).

    This pass back-propagates through the whole base and needs the memory of full fine-tuning on one example.

    Args:
        encoder: the tower; its weights require gradient only during this call.
        losses: a generator that runs the tower on one example at a time and yields the loss of its label (the paper
            uses 1,024 examples).
    """
    return fisher_of_towers([encoder], losses)[0]


def fisher_of_towers(encoders: Sequence[StagedEncoder], losses: Iterable[Tensor]) -> list[dict[str, Tensor]]:
    """:func:`fisher` for several towers that share the same losses; sums are float32 or wider."""
    weights = [dict(encoder.model.named_parameters()) for encoder in encoders]
    flat = [weight for own in weights for weight in own.values()]
    before = [weight.requires_grad for weight in flat]
    # A sum in bfloat16 would lose small squared gradients to rounding.
    totals = [torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) for weight in flat]
    try:
        for weight in flat:
            weight.requires_grad_(True)
        for loss in losses:
            gradients = torch.autograd.grad(loss, flat, allow_unused=True)
            for total, gradient in zip(totals, gradients, strict=True):
                if gradient is not None:
                    total += gradient.to(total.dtype).square()
    finally:
        for weight, asked in zip(flat, before, strict=True):
            weight.requires_grad_(asked)
    rest = iter(totals)
    return [{name: next(rest) for name in own} for own in weights]


@torch.no_grad()
def prune_(
    blocks: NarrowBlocks,
    encoder: StagedEncoder,
    importance: Importance | None = None,
    memory_units: Tensor | None = None,
) -> Tensor:
    """Copy the most important weights of the tower's blocks into ``blocks``.

    Args:
        blocks: from ``encoder.narrow``.
        encoder: the tower.
        importance: importance of its weights; default: :func:`magnitude`.
        memory_units: for a decoder, the units of the encoder's memory that its side network keeps, int64 [d].

    Returns:
        The units of the tower that the output of the last block represents, int64 [d], ascending.

    Raises:
        UserError: the weights inside the tower's blocks are not known.
    """
    encoder = with_open_weights(encoder)
    importance = magnitude(encoder) if importance is None else importance
    names = {id(weight): name for name, weight in encoder.model.named_parameters()}
    width = encoder.widths[0]
    narrow_width = len(anatomy_of(next(iter(blocks.values()))).attention.query.weight[0])
    units = _top(_embedding_importance(encoder.model, importance, width), narrow_width)
    for i in range(encoder.depth):
        block = encoder.transformer_block(i)
        target = anatomy_of(blocks[str(i)]) if str(i) in blocks else None
        scores = _importance_block(block, names, importance)
        units = _prune_block(target, anatomy_of(block), scores, units, memory_units)
        if str(i) in blocks:
            _copy_position_bias(blocks[str(i)], encoder.transformer_block(0), block)
    return units


def _importance_block(block: nn.Module, names: dict[int, str], importance: Importance) -> Anatomy:
    """The anatomy of ``block`` with importances in place of its weights."""
    memo = {id(weight): nn.Parameter(importance[names[id(weight)]], False) for weight in block.parameters()}
    return anatomy_of(copy.deepcopy(block, memo))


def _embedding_importance(model: nn.Module, importance: Importance, width: int) -> Tensor:
    """[D]: summed importance per channel of the token embedding or patch convolution."""
    for prefix, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.embedding_dim == width:
            return importance[f"{prefix}.weight"].sum(0)
        if isinstance(module, nn.Conv2d) and module.out_channels == width:
            return importance[f"{prefix}.weight"].flatten(1).sum(1)
    # Other kinds of embeddings: all channels count the same, and the first ones are kept.
    return torch.arange(width, 0, -1, device=next(model.parameters()).device)


def _top(scores: Tensor, count: int) -> Tensor:
    return scores.topk(count).indices.sort().values


def _prune_block(
    target: Anatomy | None, source: Anatomy, scores: Anatomy, units: Tensor, memory_units: Tensor | None
) -> Tensor:
    """Prune one block into ``target`` (None: only follow the units); returns the units that leave it."""
    ratio = len(cast(Tensor, source.attention.norm.weight)) // len(units)
    if source.norm_first and target:
        _copy_norm(target.attention.norm, source.attention.norm, units)
    units = _prune_attention(target and target.attention, source.attention, scores.attention, units, units, ratio)
    if target:
        _scale_rows(target.attention.out, source.scales[0], units)
    if not source.norm_first and target:
        _copy_norm(target.attention.norm, source.attention.norm, units)
    if source.cross is not None and scores.cross is not None:
        if target and target.cross:
            _copy_norm(target.cross.norm, source.cross.norm, units)
        memory = units if memory_units is None else memory_units
        units = _prune_attention(target and target.cross, source.cross, scores.cross, units, memory, ratio)
    if source.norm_first and target:
        _copy_norm(target.mlp_norm, source.mlp_norm, units)
    columns = (units,) * len(source.expand)
    inner = _prune_group(target and target.expand, source.expand, scores.expand, columns, ratio)
    units = _prune_group(target and (target.shrink,), (source.shrink,), (scores.shrink,), (inner,), ratio)
    if target:
        _scale_rows(target.shrink, source.scales[1], units)
    if not source.norm_first and target:
        _copy_norm(target.mlp_norm, source.mlp_norm, units)
    return units


def _prune_attention(
    target: Attention | None, source: Attention, scores: Attention, units: Tensor, memory: Tensor, ratio: int
) -> Tensor:
    rows = _prune_group(
        target and (target.query, target.key, target.value),
        (source.query, source.key, source.value),
        (scores.query, scores.key, scores.value),
        (units, memory, memory),
        ratio,
    )
    return _prune_group(target and (target.out,), (source.out,), (scores.out,), (rows,), ratio)


def _prune_group(
    targets: tuple[Dense, ...] | None,
    sources: tuple[Dense, ...],
    scores: tuple[Dense, ...],
    columns: tuple[Tensor, ...],
    ratio: int,
) -> Tensor:
    """Choose the output rows of weights that share them, copy the kept weights, and return the rows."""
    # Products of three squared gradients can underflow in float32.
    kept = [score.weight[:, column].double() for score, column in zip(scores, columns, strict=True)]
    count = len(sources[0].weight) // ratio if targets is None else len(targets[0].weight)
    rows = _top(reduce(torch.mul, kept).abs().sum(1), count)
    for target, source, column in zip(targets or (), sources, columns, strict=False):
        target.weight.copy_(source.weight[rows][:, column])
        if target.bias is not None and source.bias is not None:
            target.bias.copy_(source.bias[rows])
        elif target.bias is not None:
            target.bias.zero_()
    return rows


def _copy_norm(target: nn.Module, source: nn.Module, units: Tensor) -> None:
    for name, value in source.named_parameters():
        getattr(target, name).copy_(value[units])


def _scale_rows(target: Dense, scale: nn.Module, units: Tensor) -> None:
    """Fold the base's layer scale into the weights, because narrow blocks have none."""
    gamma = getattr(scale, "gamma", None)
    if gamma is not None:
        target.weight.mul_(gamma[units].unsqueeze(1))
        if target.bias is not None:
            target.bias.mul_(gamma[units])


def _copy_position_bias(target: nn.Module, *sources: nn.Module) -> None:
    """T5: copy the position bias table of the block itself, or of the first block if it has none (same size)."""
    tables = {name: value for source in sources for name, value in source.named_parameters()}
    for name, table in target.named_parameters():
        if name.endswith("relative_attention_bias.weight"):
            table.copy_(tables[name])
