"""transformers text encoders (see :mod:`vlkit.encoders.families`) as staged encoders, alone or inside open_clip."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlkit.encoders.blocks.capture import inputs_of, watch
from vlkit.encoders.blocks.narrow import NarrowBlocks
from vlkit.encoders.families import family_of_encoder, known_family
from vlkit.encoders.staged import RunsBlock, Stream, call_block
from vlkit.encoders.towers.text import TextEncoder


def trunk_of(model: nn.Module) -> nn.Module | None:
    """The module of a transformers model that holds the encoder's blocks; None if its family is not listed."""
    return next((m for m in (model, getattr(model, "encoder", None)) if family_of_encoder(m)), None)


def blocks_of(trunk: nn.Module) -> nn.ModuleList:
    """The list of blocks of a transformers encoder."""
    return cast(nn.ModuleList, trunk.get_submodule(known_family(trunk).blocks))


def final_norm(trunk: nn.Module, hidden: Tensor) -> Tensor:
    """Apply the norm after the last block of a transformers encoder, if it has one; [B, L, D] in and out."""
    path = known_family(trunk).norm
    return hidden if path is None else trunk.get_submodule(path)(hidden)


def start_trunk(trunk: nn.Module, **inputs: Any) -> tuple[Tensor, dict[str, Any]]:
    """Run a transformers encoder up to its first block.

    Returns:
        The input [B, L, D] of block 0, and the other arguments that the encoder passes to its blocks.
    """
    first = blocks_of(trunk)[0]
    arguments = inputs_of(first, lambda: trunk(**inputs))
    return arguments.pop("hidden_states"), arguments


def run_block(
    trunk: nn.Module, i: int, hidden: Tensor, arguments: dict[str, Any], run: RunsBlock = call_block
) -> tuple[Tensor, dict[str, Any]]:
    """Run block ``i`` on [B, L, D]; returns the new hidden state and the arguments for the next block.

    T5's first block computes the relative position bias and passes it to later blocks.
    """
    output = run(blocks_of(trunk)[i], hidden, arguments)
    if isinstance(output, Tensor):
        return output, arguments
    if "position_bias" in arguments and arguments["position_bias"] is None:
        arguments = {**arguments, "position_bias": output[1]}
    return output[0], arguments


class HfText(TextEncoder):
    """A transformers text encoder: ids [B, L] int64 -> tokens [B, L, D]. Padding is masked by the encoder itself.

    Args:
        model: the module that owns the weights.
        trunk: the part of ``model`` that holds the blocks; one of the families in :mod:`vlkit.encoders.families`.
        out_dim: width of :meth:`pool`'s output.
        summary: position of the pooled token, or None if the tower pools over its tokens.
    """

    causal = False
    trimmable = True

    pad_id: int

    def __init__(self, model: nn.Module, trunk: Any, out_dim: int, summary: int | None) -> None:
        super().__init__()
        self.model = model
        blocks = blocks_of(trunk)
        watch(blocks[0])
        if hasattr(trunk, "layerdrop"):
            trunk.layerdrop = 0.0  # NLLB would skip random blocks in training, even the first one
        self.depth = len(blocks)
        self.token_dim = trunk.config.hidden_size
        self.widths = (self.token_dim,) * (self.depth + 1)
        self.stages = tuple(range(self.depth + 1))
        self.out_dim = out_dim
        self.pad_id = trunk.config.pad_token_id or 0
        self._summary = summary

    @property
    def trunk(self) -> Any:
        """The transformers encoder that holds the blocks."""
        return self.model

    def embed(self, x: Tensor) -> Stream:
        """Ids [B, L] -> stream with hidden [B, L, D] and its mask of real tokens."""
        mask = self.real(x)
        hidden, arguments = start_trunk(self.trunk, input_ids=x, attention_mask=mask.long())
        summary = None if self._summary is None else torch.full_like(x[:, 0], self._summary)
        return Stream(hidden, mask, summary, {"arguments": arguments})

    def block(self, i: int, stream: Stream) -> Stream:
        """Run block ``i``; [B, L, D] in and out."""
        hidden, arguments = run_block(self.trunk, i, stream.hidden, stream.extras["arguments"], self.runs(call_block))
        return stream.replace(hidden=hidden, extras={"arguments": arguments})

    def transformer_block(self, i: int) -> nn.Module:
        """transformers' block ``i``."""
        return blocks_of(self.trunk)[i]

    def narrow(self, layers: tuple[int, ...], reduction: int) -> NarrowBlocks:
        """See :meth:`StagedEncoder.narrow`; the sizes come from the encoder's configuration."""
        return NarrowBlocks(self.transformer_block, layers, reduction, self.trunk.config)

    def tokens(self, stream: Stream) -> Tensor:
        """[B, L, D] after the final norm (if the encoder has one outside its blocks)."""
        return final_norm(self.trunk, stream.hidden)

    def real(self, ids: Tensor) -> Tensor:
        """[B, L] bool: every token that is not padding."""
        return ids != self.pad_id


class HfEncoder(HfText):
    """A transformers encoder on its own.

    The family decides the pooling: the model's ``pooler_output`` (the state of the first token if it has no pooler), or
    the mean of the real tokens after the final norm.

    Args:
        model: the model; parts outside its encoder (a decoder, an output layer) are ignored.
        pool: ``first`` or ``mean`` to override the family's pooling.
    """

    def __init__(self, model: nn.Module, pool: Literal["first", "mean"] | None = None) -> None:
        trunk: Any = trunk_of(model)
        self._pool = pool or known_family(trunk).pool
        super().__init__(trunk, trunk, trunk.config.hidden_size, summary=0 if self._pool == "first" else None)

    def pool(self, stream: Stream) -> Tensor:
        """[B, D]: ``pooler_output``, the state of the first token, or the mean of the real tokens."""
        if self._pool == "mean":
            assert stream.mask is not None  # embed makes one
            weight = stream.mask.unsqueeze(-1).to(stream.hidden.dtype)
            return (self.tokens(stream) * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        pooler = getattr(self.trunk, "pooler", None)
        return self.tokens(stream)[:, 0] if pooler is None else pooler(self.tokens(stream))


class ClipHfText(HfText):
    """open_clip's ``HFTextEncoder``: a transformers encoder with open_clip's pooling and projection."""

    def __init__(self, model: HFTextEncoder) -> None:
        probe = [p for p in model.proj.parameters()]
        out_dim = probe[-1].shape[0] if probe else model.output_dim
        pools_first = hasattr(model.pooler, "cls_token_position")
        super().__init__(model, model.transformer, out_dim, summary=0 if pools_first else None)
        self.pad_id = cast(Any, model.config).pad_token_id

    @property
    def trunk(self) -> Any:
        """The transformers encoder inside open_clip's wrapper."""
        return self.model.transformer

    def pool(self, stream: Stream) -> Tensor:
        """[B, out_dim]: pooled over tokens or at the first token, as configured by open_clip, then projected."""
        hidden = self.tokens(stream)
        pooler = getattr(self.trunk, "pooler", None)
        output = BaseModelOutputWithPooling(hidden, None if pooler is None else pooler(hidden))
        assert stream.mask is not None  # embed makes one
        return self.model.proj(self.model.pooler(output, stream.mask.long()))
