"""Narrow copies of a tower's blocks, for methods that run a small network beside the frozen one."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from vlkit.encoders.blocks.anatomy import Opaque, anatomy_of
from vlkit.encoders.contrastive_families import Contrastive
from vlkit.encoders.families import Family, family_of_block
from vlkit.errors import UserError


class NarrowBlocks(nn.ModuleDict):
    """Blocks like those of a tower, with the same number of heads and divided widths; keyed by block number.

    transformers blocks are built by their own class from a configuration with divided widths; T5's first block owns the
    relative position bias that the others share. For open_clip and timm they are open_clip's plain pre-norm blocks.

    Args:
        block_of: block number -> the tower's own block (:meth:`StagedEncoder.transformer_block`).
        layers: block numbers, ascending.
        reduction: divisor of every width.
        config: configuration of a transformers tower whose blocks do not hold it.

    Raises:
        UserError: a width is not divisible by ``reduction``.
        Opaque: this kind of block has no narrow version.
    """

    def __init__(
        self, block_of: Callable[[int], nn.Module], layers: tuple[int, ...], reduction: int, config: Any = None
    ) -> None:
        super().__init__()
        self._shares_bias, self._transformers = False, False
        for i in layers:
            block = block_of(i)
            family = family_of_block(block)
            if family is None:
                self[str(i)] = _plain_block(block, reduction)
                continue
            self._shares_bias, self._transformers = family.shares_bias, True
            narrow = _divided(config or _config_of(block), family, reduction)
            self[str(i)] = _hf_block(block, narrow, place=layers.index(i))

    def start(self, extras: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the first block besides its state, given a stream's extras."""
        if not self._transformers:
            return {"attn_mask": extras.get("attn_mask")}
        arguments = dict(extras["arguments"])
        if self._shares_bias:
            # The base has filled in its own bias by now; these blocks have their own table.
            arguments["position_bias"] = None
        return arguments

    def final_norm(self) -> nn.Module:
        """The norm that follows the last of these blocks; identity for post-norm blocks (BERT)."""
        parts = anatomy_of(next(iter(self.values())))
        if not parts.norm_first:
            return nn.Identity()
        norm: Any = parts.mlp_norm
        width = len(norm.weight)
        if getattr(norm, "bias", None) is None:  # T5
            return nn.RMSNorm(width, eps=norm.variance_epsilon)
        return nn.LayerNorm(width, eps=norm.eps)

    def run(self, i: int, hidden: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Run block ``i`` on [B, L, D / reduction]; returns the new state and the arguments for the next block."""
        output = self[str(i)](hidden, **arguments)
        if isinstance(output, Tensor):
            return output, arguments
        if arguments.get("position_bias", ...) is None:
            arguments = {**arguments, "position_bias": output[1]}
        return output[0], arguments


def _config_of(block: nn.Module) -> Any:
    """The configuration of a transformers block; None for blocks of other libraries."""
    return next((module.config for module in block.modules() if hasattr(module, "config")), None)


def _divided(config: Any, family: Family | Contrastive, reduction: int) -> Any:
    if family.parts is None:
        raise Opaque(f"{family.name} has no narrow blocks: its attention is not plain softmax attention")
    narrow = copy.deepcopy(config)
    for name in family.parts.widths:
        setattr(narrow, name, _divide(getattr(config, name), reduction))
    if family.parts.heads is not None:
        _check_heads(getattr(narrow, family.parts.widths[0]), getattr(config, family.parts.heads), reduction)
    return narrow


def _hf_block(block: nn.Module, config: Any, place: int) -> nn.Module:
    known = {"has_relative_attention_bias": place == 0, "layer_idx": place}
    asked = inspect.signature(type(block)).parameters
    return type(block)(config, **{name: value for name, value in known.items() if name in asked})


def _plain_block(block: Any, reduction: int) -> ResidualAttentionBlock:
    attention = block.attn
    heads = attention.num_heads
    norm = next(m for m in block.modules() if isinstance(m, nn.LayerNorm) or "Norm" in type(m).__name__)
    width = norm.normalized_shape[0] if hasattr(norm, "normalized_shape") else attention.proj.in_features
    narrow = _divide(width, reduction)
    _check_heads(narrow, heads, reduction)
    hidden = max((m.out_features for m in block.mlp.modules() if isinstance(m, nn.Linear)), default=4 * width)
    activation = getattr(block.mlp, "gelu", None) or getattr(block.mlp, "act", None) or nn.GELU()
    return ResidualAttentionBlock(
        narrow,
        heads,
        mlp_ratio=(max(hidden // reduction, 1) + 0.5) / narrow,  # + 0.5 because open_clip rounds down
        act_layer=type(activation),
        norm_layer=partial(nn.LayerNorm, eps=getattr(norm, "eps", 1e-5)),
    )


def _divide(width: int, reduction: int) -> int:
    if reduction < 1 or width % reduction or width < reduction:
        raise UserError(f"--adapter.reduction {reduction}: does not divide the width {width} of this tower")
    return width // reduction


def _check_heads(width: int, heads: int, reduction: int) -> None:
    if width % heads:
        raise UserError(
            f"--adapter.reduction {reduction}: width {width} is not divisible by {heads} heads; "
            f"give a divisor of {width * reduction // heads}"
        )
