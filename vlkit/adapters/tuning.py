"""Methods that back-propagate through the whole base, for comparison: full fine-tuning, BitFit and LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vlkit.adapters.base import Encoded
from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.encoders.staged import StagedEncoder, Stream, freeze, in_weights_format, run_blocks, unfreeze
from vlkit.errors import UserError


class TunedEncoder(nn.Module):
    """A base whose own parameters, or parts put into it, train. ``forward(x)`` gives :class:`Encoded`.

    Args:
        base: the tower; which parameters train is decided by their ``requires_grad``.
        checkpointing: save only the input of each block for backward and run the block again there.
    """

    def __init__(self, base: StagedEncoder, checkpointing: bool = False) -> None:
        super().__init__()
        self.base = base
        self.checkpointing = checkpointing

    def forward(self, x: Any) -> Encoded:
        """Every block with gradient."""
        stream = self.base.embed(in_weights_format(self.base, x))
        if not self.checkpointing:
            return Encoded(self.base, run_blocks(self.base, stream, 0, self.base.depth))
        for i in range(self.base.depth):
            stream = checkpoint(_run_block, self.base, i, stream, use_reentrant=False)
        return Encoded(self.base, stream)

    def train(self, mode: bool = True) -> TunedEncoder:
        """Training mode with dropout, but fixed batch-norm statistics: small batches would ruin pre-trained ones."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def _run_block(base: StagedEncoder, i: int, stream: Stream) -> Stream:
    return base.block(i, stream)


class _TunedOptions(MethodOptions):
    """What methods that train the base have in common."""

    trains_base: ClassVar[bool] = True
    has_early_route: ClassVar[bool] = False
    feeds_decoder: ClassVar[bool] = True
    running: ClassVar[tuple[str, ...]] = ("checkpointing",)

    def build_stacks(self, encoder: StagedEncoder, decoder: StagedEncoder) -> tuple[TunedEncoder, TunedEncoder]:
        """Each stack like any tower; gradient passes through both."""
        stacks = self.build(encoder, "tokens"), self.build(decoder, "tokens")
        return cast("tuple[TunedEncoder, TunedEncoder]", stacks)


@dataclass
class FullOptions(_TunedOptions):
    """Full fine-tuning: every parameter of the base trains."""

    kind: Literal["full"] = "full"
    checkpointing: bool = False
    """Run blocks again in backward instead of saving their activations."""

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> TunedEncoder:
        """Let all of ``encoder`` train."""
        return TunedEncoder(unfreeze(encoder), self.checkpointing)


@dataclass
class BitfitOptions(_TunedOptions):
    """BitFit (Ben Zaken et al., ACL 2022): only the biases of the base train."""

    kind: Literal["bitfit"] = "bitfit"
    feeds_decoder: ClassVar[bool] = False  # the encoder-decoders here are T5s, which have no biases
    checkpointing: bool = False
    """Run blocks again in backward instead of saving their activations."""

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> TunedEncoder:
        """Let the biases of ``encoder`` train.

        Raises:
            UserError: the tower has none (T5).
        """
        freeze(encoder)
        encoder._frozen = False
        biases = [p for name, p in encoder.named_parameters() if _is_bias(name)]
        if not biases:
            raise UserError(f"--adapter.kind bitfit: {encoder.kind} has no biases to train; choose another kind")
        for parameter in biases:
            parameter.requires_grad_(True)
        return TunedEncoder(encoder, self.checkpointing)


def _is_bias(name: str) -> bool:
    leaf = name.rsplit(".", 1)[-1]
    return leaf == "bias" or leaf.endswith("_bias")


@dataclass
class LoraOptions(_TunedOptions):
    """LoRA (Hu et al., ICLR 2022), through peft: low-rank updates of every linear layer and attention of the blocks."""

    kind: Literal["lora"] = "lora"
    rank: int = 8
    """Rank of the updates."""
    alpha: int = 16
    """Updates are scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout in front of the updates."""
    checkpointing: bool = False
    """Run blocks again in backward instead of saving their activations."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"--adapter.rank {self.rank}: must be at least 1")

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> TunedEncoder:
        """Freeze ``encoder`` and put trainable low-rank updates into it.

        Raises:
            UserError: the tower has no layer that LoRA can update.
        """
        freeze(encoder)
        encoder._frozen = False
        targets = _lora_targets(encoder)
        if not targets:
            raise UserError(f"--adapter.kind lora: {encoder.kind} has no layer that peft can update")
        # Takes a second to import, which only those pay who use it; what it makes of its own is no part of the model
        # and stays off the device that the model is built on.
        with torch.device("cpu"):
            from peft import LoraConfig, inject_adapter_in_model
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=targets)
        inject_adapter_in_model(config, encoder)
        return TunedEncoder(encoder, self.checkpointing)


def _lora_targets(encoder: StagedEncoder) -> list[str]:
    """Names of the attentions, linear layers and (in convolutional towers) ungrouped convolutions."""
    kinds = (nn.Linear, nn.Conv2d) if encoder.spatial else (nn.Linear,)
    attentions = [name for name, m in encoder.named_modules() if isinstance(m, nn.MultiheadAttention)]
    others = [
        name
        for name, m in encoder.named_modules()
        # An attention's output projection is updated along with the attention.
        if isinstance(m, kinds)
        and getattr(m, "groups", 1) == 1
        and not name.startswith(tuple(f"{a}." for a in attentions))
    ]
    return attentions + others
