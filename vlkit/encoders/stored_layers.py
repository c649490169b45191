"""Layers of a frozen base whose weights are stored in fewer bytes, and the swap of a module's own layers for them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vlkit.encoders.stored_weights import StoredWeight, WeightFormat, stored_format

SMALLEST = 4096
"""Tensors with fewer values keep their precision."""


class _Product(torch.autograd.Function):
    """``x W^T + b`` with a stored, constant weight: backward opens it again instead of saving it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, stored: StoredWeight) -> Tensor:
        ctx.stored, ctx.wants_bias = stored, bias is not None and bias.requires_grad
        weight = stored.open()
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            weight, x, bias = weight.to(dtype), x.to(dtype), None if bias is None else bias.to(dtype)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        into = gradient @ ctx.stored.open().to(gradient.dtype) if ctx.needs_input_grad[0] else None
        into_bias = gradient.flatten(0, -2).sum(0) if ctx.wants_bias else None
        return into, into_bias, None


class StoredLinear(nn.Linear):
    """A frozen linear layer whose weight is stored; ``weight`` opens it.

    Args:
        stored: weight [O, I].
        bias: [O] or None; shared with the original layer.
    """

    def __init__(self, stored: StoredWeight, bias: nn.Parameter | None) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would allocate the weight
        self.in_features, self.out_features = stored.tail.numel(), len(stored.codes)
        self.stored = stored
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[O, I] as floats, opened on every access."""
        return self.stored.open()

    def forward(self, input: Tensor) -> Tensor:  # the name of nn.Linear
        """[..., I] -> [..., O]."""
        return cast(Tensor, _Product.apply(input, self.bias, self.stored))


class StoredConv2d(nn.Conv2d):
    """A frozen convolution whose weight is stored; ``weight`` opens it."""

    def __init__(self, whole: nn.Conv2d, number_format: WeightFormat) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({k: v for k, v in whole.__dict__.items() if k not in nn.Module().__dict__})
        self.stored = StoredWeight(whole.weight, number_format)
        self.register_parameter("bias", cast("nn.Parameter | None", whole.bias))

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[O, I / groups, h, w] as floats, opened on every access."""
        return self.stored.open()


class StoredEmbedding(nn.Embedding):
    """A frozen table whose rows are stored; only the rows that are looked up are opened."""

    def __init__(self, whole: nn.Embedding, number_format: WeightFormat) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({k: v for k, v in whole.__dict__.items() if k not in nn.Module().__dict__})
        self.stored = StoredWeight(whole.weight, number_format)

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The whole table as floats, opened on every access."""
        return self.stored.open()

    def forward(self, input: Tensor) -> Tensor:  # the name of nn.Embedding
        """Ids [...] int64 -> [..., D]."""
        ids, codes, scales = input.flatten(), self.stored.codes, self.stored.scales
        chosen = scales if self.stored.number_format == "bf16" else scales.index_select(0, ids)
        return self.stored.open(codes.index_select(0, ids), chosen).view(*input.shape, self.embedding_dim)


class StoredAttention(nn.MultiheadAttention):
    """torch's attention with stored projections; ``in_proj_weight`` opens the fused one."""

    def __init__(self, whole: nn.MultiheadAttention, number_format: WeightFormat) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({k: v for k, v in whole.__dict__.items() if k not in nn.Module().__dict__})
        self.stored = StoredWeight(cast(Tensor, whole.in_proj_weight), number_format)
        self.register_parameter("in_proj_bias", whole.in_proj_bias)
        self.bias_k, self.bias_v = whole.bias_k, whole.bias_v
        for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
            self.register_parameter(name, None)
        self.out_proj = cast(Any, StoredLinear(StoredWeight(whole.out_proj.weight, number_format), whole.out_proj.bias))

    @property
    def in_proj_weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[3 D, D] as floats, opened on every access."""
        return self.stored.open()


def store_weights(module: nn.Module, number_format: WeightFormat) -> None:
    """Store the matrices of linear layers, attentions, convolutions and embeddings of a frozen module, in place.

    Args:
        module: its parameters must not be trained any more.
        number_format: fp32 changes nothing.
    """
    if number_format == "fp32":
        return
    seen: dict[int, nn.Module] = {}  # a layer that two owners share stays shared
    for owner in list(module.modules()):
        for name, child in list(owner.named_children()):
            if id(child) not in seen:
                seen[id(child)] = _stored(child, number_format).train(child.training)
            if seen[id(child)] is not child:
                setattr(owner, name, seen[id(child)])


def _stored(layer: nn.Module, number_format: WeightFormat) -> nn.Module:
    """The stored version of a layer; the layer itself if it has none or is small."""
    if isinstance(layer, nn.MultiheadAttention):
        whole = layer.in_proj_weight is not None and layer.in_proj_weight.numel() >= SMALLEST
        return StoredAttention(layer, number_format) if whole else layer
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.numel() < SMALLEST or hasattr(layer, "stored"):
        return layer
    if isinstance(layer, nn.Linear):
        return StoredLinear(StoredWeight(weight, number_format), layer.bias)
    if isinstance(layer, nn.Conv2d):
        return StoredConv2d(layer, number_format)
    if isinstance(layer, nn.Embedding):
        return StoredEmbedding(layer, number_format)
    return layer


def store_towers(
    towers: Mapping[str, nn.Module], identity: dict[str, dict[str, Any]], number_format: WeightFormat
) -> None:
    """Store the weights of every tower of a base; their identities then state the format (fp32: no change)."""
    for name, tower in towers.items() if number_format != "fp32" else ():
        store_weights(tower, number_format)
        fingerprint = f"{identity[name]['fingerprint']}-{number_format}" if name in identity else ""
        identity.setdefault(name, {}).update(format=number_format, fingerprint=fingerprint)


M = TypeVar("M", bound=nn.Module)


def with_open_weights(module: M) -> M:
    """A copy of a module with floats in place of stored weights, for code that reads them by name; the module itself
    if it stores none.
    """
    if stored_format(module) == "fp32":
        return module
    opened = copy.deepcopy(module)
    for owner in list(opened.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, StoredLinear | StoredConv2d | StoredEmbedding | StoredAttention):
                setattr(owner, name, _opened(child))
    return opened


def _opened(layer: StoredLinear | StoredConv2d | StoredEmbedding | StoredAttention) -> nn.Module:
    """The library's own layer on the opened weight."""
    kind: Any = type(layer).__mro__[1]
    plain: Any = kind.__new__(kind)
    nn.Module.__init__(plain)
    plain.__dict__.update({k: v for k, v in layer.__dict__.items() if k not in nn.Module().__dict__})
    plain._parameters.update(layer._parameters)
    plain._modules.update({name: part for name, part in layer._modules.items() if name != "stored"})
    if isinstance(layer, StoredAttention):
        plain.in_proj_weight = nn.Parameter(layer.in_proj_weight, requires_grad=False)
        plain.out_proj = _opened(cast(StoredLinear, layer.out_proj))
    else:
        plain.weight = nn.Parameter(layer.weight, requires_grad=False)
    return plain.train(layer.training)
