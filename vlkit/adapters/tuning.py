"""Baselines that back-propagate through the whole base: full fine-tuning, BitFit and LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlkit.adapters.base import Encoded
from vlkit.adapters.facts import MethodOptions, Reads
from vlkit.adapters.projections import Which, attention_maps, check_reachable, split_projections
from vlkit.adapters.saved.mode import Saved, compressed, name_operations, saved_option
from vlkit.adapters.stacks import Memory, Past
from vlkit.encoders.blocks.anatomy import Opaque
from vlkit.encoders.staged import StagedEncoder, Stream, freeze, in_weights_format, run_blocks, unfreeze
from vlkit.encoders.stored_weights import stored_format
from vlkit.encoders.towers.t5 import DecoderInput, T5Decoder
from vlkit.encoders.towers.text import TextEncoder
from vlkit.errors import UserError


class TunedEncoder(nn.Module):
    """A base whose own parameters, or modules inserted into it, train. ``forward(x)`` gives :class:`Encoded`.

    Args:
        base: the tower; ``requires_grad`` decides which parameters train.
        checkpointing: save only the input of each block and recompute the block in backward.
        saved: format of the saved activations; see :mod:`vlkit.adapters.saved.mode`.
        kept: names of tensors of ``base`` that a saved adapter needs although they do not train.
    """

    saved: Saved

    def __init__(
        self, base: StagedEncoder, checkpointing: bool = False, saved: Saved = "fp32", kept: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.base = base
        self.checkpointing = checkpointing
        self.saved: Saved = saved
        if saved != "fp32":
            name_operations(base)
        self.saved_untrained = tuple(f"base.{name}" for name in kept)

    def forward(self, x: Any) -> Encoded:
        """Run every block with gradient."""
        with compressed(self.saved):
            stream = self.base.embed(in_weights_format(self.base, x))
            if not self.checkpointing:
                return Encoded(self.base, run_blocks(self.base, stream, 0, self.base.depth))
        for i in range(self.base.depth):
            stream = checkpoint(_run_block, self.base, i, stream, use_reentrant=False)
        return Encoded(self.base, stream)

    def adds_at(self, name: str) -> int | None:
        """Number of the block to which tensor ``name`` beside the base adds in proportion to its values, if it does.

        Raises:
            UserError: what the tensor adds cannot be scaled.
        """
        return None

    def train(self, mode: bool = True) -> TunedEncoder:
        """Training mode with dropout but fixed batch-norm statistics, which small batches would ruin."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


class TunedReader(TunedEncoder):
    """A tuned encoder of an encoder-decoder, a :class:`vlkit.adapters.stacks.TextReader`."""

    def read(self, ids: Tensor, visual: Tensor | None = None) -> Memory:
        """The encoder's output of the text, followed by the visual tokens, scaled by the encoder's final norm."""
        encoded = self(ids)
        memory = Memory(encoded.tokens, encoded.tokens, encoded.mask)
        if visual is None:
            return memory
        trunk: Any = self.base.trunk
        return memory.with_tokens(trunk.final_layer_norm(visual))


class TunedWriter(TunedEncoder):
    """A tuned decoder of an encoder-decoder; every block attends to the whole memory."""

    base: T5Decoder

    def write(self, start: Tensor, memory: Memory, past: Past | None = None) -> Tensor:
        """See :class:`vlkit.adapters.stacks.TextWriter`."""
        mask = memory.mask if memory.side_mask is None else memory.side_mask
        x = DecoderInput(start, memory.side, mask, None if past is None else past.base)
        return self.base.logits(self(x).tokens)


def _run_block(base: StagedEncoder, i: int, stream: Stream) -> Stream:
    return base.block(i, stream)


class TunedOptions(MethodOptions):
    """Common options of methods that train the base."""

    trains_base: ClassVar[bool] = True
    has_early_route: ClassVar[bool] = False
    feeds_decoder: ClassVar[bool] = True
    gradient_in_base: ClassVar[bool] = True
    running: ClassVar[tuple[str, ...]] = ("checkpointing", "saved")
    checkpointing: bool = False
    saved: Saved = "fp32"

    def __post_init__(self) -> None:
        if self.checkpointing and self.saved != "fp32":
            raise UserError(
                f"--adapter.saved {self.saved}: --adapter.checkpointing saves no activations that could be compressed; "
                "leave one of the two out"
            )

    def build_stacks(self, encoder: StagedEncoder, decoder: T5Decoder) -> tuple[TunedReader, TunedWriter]:
        """Apply the method to each stack; gradient passes through both."""
        first, second = (cast(TunedEncoder, self.build(stack, "tokens")) for stack in (encoder, decoder))
        reader = TunedReader(encoder, first.checkpointing, first.saved)
        writer = TunedWriter(decoder, second.checkpointing, second.saved)
        reader.saved_untrained, writer.saved_untrained = first.saved_untrained, second.saved_untrained
        return reader, writer


@dataclass
class FullOptions(TunedOptions):
    """Full fine-tuning: every parameter of the base trains."""

    kind: Literal["full"] = "full"
    checkpointing: bool = False
    """Run blocks again in backward instead of saving their activations."""
    saved: Saved = saved_option()
    """Format of the saved activations: fp32 (unchanged), int8 or int4. The forward is always exact; the gradient is
    rounded."""

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> TunedEncoder:
        """Make every parameter of ``encoder`` trainable.

        Raises:
            UserError: the weights of ``encoder`` are stored in another format.
        """
        if (stored := stored_format(encoder)) != "fp32":
            raise UserError(f"--base_weights {stored}: full fine-tuning trains these weights; give fp32, or use lora")
        return TunedEncoder(unfreeze(encoder), self.checkpointing, self.saved)


@dataclass
class BitfitOptions(TunedOptions):
    """BitFit (Ben Zaken et al., ACL 2022): only the biases of the base train; a T5, which has none, gets them."""

    kind: Literal["bitfit"] = "bitfit"
    checkpointing: bool = False
    """Run blocks again in backward instead of saving their activations."""
    saved: Saved = saved_option()
    """Format of the saved activations: fp32 (unchanged), int8 or int4. The forward is always exact; the gradient is
    rounded."""

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> TunedEncoder:
        """Make the biases of ``encoder`` trainable.

        A tower without biases (T5) gets one of 0 in every linear layer and norm, as in the study of LST.

        Raises:
            UserError: the tower has no biases and no linear layers.
        """
        freeze(encoder)
        encoder._frozen = False
        biases = [p for name, p in encoder.named_parameters() if _is_bias(name)] or _added_biases(encoder)
        if not biases:
            raise UserError(f"--adapter.kind bitfit: {encoder.kind} has no biases to train; choose another kind")
        for parameter in biases:
            parameter.requires_grad_(True)
        return TunedEncoder(encoder, self.checkpointing, self.saved)


def _added_biases(encoder: StagedEncoder) -> list[nn.Parameter]:
    """Give every linear layer and norm between input and output of a transformers stack a bias of 0."""
    added = []
    for module in getattr(encoder, "trunk", nn.Identity()).modules():
        weight = getattr(module, "weight", None)
        if weight is None or isinstance(module, nn.Embedding):
            continue
        bias = nn.Parameter(weight.new_zeros(len(weight)))
        if isinstance(module, nn.Linear):
            module.bias = bias
        else:  # T5's norm has no place for one
            module.register_parameter("bias", bias)
            module.register_forward_hook(_plus_bias)
        added.append(bias)
    return added


def _plus_bias(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output + cast(Tensor, module.bias)


def _is_bias(name: str) -> bool:
    leaf = name.rsplit(".", 1)[-1]
    return leaf == "bias" or leaf.endswith("_bias")


@dataclass
class LoraOptions(TunedOptions):
    """LoRA (Hu et al., ICLR 2022) with peft: low-rank updates of linear layers and attentions."""

    kind: Literal["lora"] = "lora"
    rank: int = 8
    """Rank of the updates."""
    alpha: int = 16
    """The updates are scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the input of the updates."""
    targets: Which = "all"
    """Which maps are updated. all: every linear layer and attention; attention: query, key, value and output of each
    attention; qv: query and value, as in the LoRA paper. Fewer maps save fewer activations."""
    freeze_a: bool = False
    """Train only the second factor of each update (LoRA-FA, arXiv:2308.03303): backward then needs rank values per
    token instead of the layer's whole input."""
    towers: Literal["both", "image", "text"] = "both"
    """Which towers are updated. text: the image tower stays frozen, as in locked-image tuning (LiT, Zhai et al., CVPR
    2022); image: the other way round."""
    last_blocks: int = 0
    """Update only this many last blocks of each tower; 0 = all maps of the tower. Backward ends at the first of them,
    so saved activations and time fall with their number."""
    checkpointing: bool = False
    """Run blocks again in backward instead of saving their activations."""
    saved: Saved = saved_option()
    """Format of the saved activations: fp32 (unchanged), int8 or int4. The forward is always exact; the gradient is
    rounded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last_blocks < 0:
            raise UserError(f"--adapter.last_blocks {self.last_blocks}: must be 0 (every block) or more")
        if self.rank < 1:
            raise UserError(f"--adapter.rank {self.rank}: must be at least 1")
        if self.alpha < 1:
            raise UserError(f"--adapter.alpha {self.alpha}: must be at least 1")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--adapter.dropout {self.dropout}: must be at least 0 and less than 1")

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> TunedEncoder:
        """Freeze ``encoder`` and insert trainable low-rank updates.

        Raises:
            UserError: the tower has no layer that LoRA can update, or an attention that peft cannot reach, or
                ``last_blocks`` is given and the tower has no transformer blocks.
        """
        freeze(encoder)
        if self.towers == ("image" if isinstance(encoder, TextEncoder) else "text"):
            return TunedEncoder(encoder)
        encoder._frozen = False
        check_reachable(encoder)
        # peft's own layer for torch's attention adds its update to the weights, so backward needs the whole input, and
        # it cannot leave the keys out. Stored weights cannot be added to.
        if self.freeze_a or self.targets != "all" or stored_format(encoder) != "fp32":
            split_projections(encoder)
        targets = _all_maps(encoder) if self.targets == "all" else attention_maps(encoder, self.targets)
        if self.last_blocks:
            inside = _last_blocks(encoder, self.last_blocks)
            targets = [name for name in targets if name.startswith(inside)]
        if not targets:
            what = "layer" if self.targets == "all" else "attention"
            fix = "choose another kind" if self.targets == "all" else "use --adapter.targets all"
            raise UserError(f"--adapter.kind lora: {encoder.kind} has no {what} that peft can update; {fix}")
        # Imported here because it takes a second. Tensors that peft creates at import are not part of the model and
        # must not land on the device that the model is built on.
        with torch.device("cpu"):
            from peft import LoraConfig, inject_adapter_in_model
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=targets)
        inject_adapter_in_model(config, encoder)
        first = [name for name, _ in encoder.named_parameters() if ".lora_A." in name] if self.freeze_a else []
        for name in first:
            encoder.get_parameter(name).requires_grad_(False)
        return TunedEncoder(encoder, self.checkpointing, self.saved, kept=first)


def _last_blocks(encoder: StagedEncoder, count: int) -> tuple[str, ...]:
    """Prefixes of the names of everything in the last ``count`` blocks; a tower with fewer blocks: in all of them."""
    try:
        blocks = [encoder.transformer_block(i) for i in range(max(0, encoder.depth - count), encoder.depth)]
    except Opaque as error:
        raise UserError(f"--adapter.last_blocks {count}: {error}; leave it out") from None
    wanted = set(map(id, blocks))
    return tuple(f"{name}." for name, module in encoder.named_modules() if id(module) in wanted)


def _all_maps(encoder: StagedEncoder) -> list[str]:
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
