"""Layers of a frozen base whose weights are stored in fewer bytes, and the swap of a module's own layers for them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
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
        weight = stored.open_for_product()
        if torch.is_autocast_enabled(x.device.type):
            x, bias = x.to(weight.dtype), None if bias is None else bias.to(weight.dtype)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        into = gradient @ ctx.stored.open(dtype=gradient.dtype) if ctx.needs_input_grad[0] else None
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
    """A frozen convolution whose weight is stored; ``weight`` opens it. See :func:`stored_layer`."""

    stored: StoredWeight

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[O, I / groups, h, w] as floats, opened on every access."""
        return self.stored.open()


class StoredEmbedding(nn.Embedding):
    """A frozen table whose rows are stored; only the rows that are looked up are opened. See :func:`stored_layer`."""

    stored: StoredWeight

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
    """torch's attention with stored projections; ``in_proj_weight`` opens the fused one. See :func:`stored_layer`."""

    stored: StoredWeight

    @property
    def in_proj_weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[3 D, D] as floats, opened on every access."""
        return self.stored.open_for_product()


STORED: Mapping[type[nn.Module], Any] = {
    nn.Linear: StoredLinear,
    nn.Conv2d: StoredConv2d,
    nn.Embedding: StoredEmbedding,
    nn.MultiheadAttention: StoredAttention,
}
"""torch's layers with a matrix -> their stored version."""


@cache
def _stored_class(kind: type[nn.Module]) -> Any:
    """The stored version of a layer's class; None if it is none of :data:`STORED`.

    A subclass keeps its own forward (padding as TensorFlow computes it, standardised weights, scaled embeddings): its
    stored version inherits from both, so that ``super().forward`` of the subclass meets the stored layer.
    """
    plain = next((plain for plain in STORED if issubclass(kind, plain)), None)
    if plain is None:
        return None
    # torch's own subclass, the output of its attention, computes what the plain layer does.
    if kind.__module__.startswith("torch.nn."):
        return STORED[plain]
    return type(f"Stored{kind.__name__}", (kind, STORED[plain]), {})


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
                seen[id(child)] = stored_layer(child, number_format)
            if seen[id(child)] is not child:
                setattr(owner, name, seen[id(child)])


def stored_layer(layer: nn.Module, number_format: WeightFormat) -> nn.Module:
    """The stored version of a frozen layer; the layer itself if it has none or is small."""
    kind = None if hasattr(layer, "stored") else _stored_class(type(layer))
    name = "in_proj_weight" if isinstance(layer, nn.MultiheadAttention) else "weight"
    weight = getattr(layer, name, None)
    if kind is None or not isinstance(weight, Tensor) or weight.numel() < SMALLEST:
        return layer
    stored = _twin(layer, kind, without=name)
    stored.stored = StoredWeight(weight, number_format)
    if isinstance(layer, nn.MultiheadAttention):
        stored.out_proj = StoredLinear(StoredWeight(layer.out_proj.weight, number_format), layer.out_proj.bias)
    return stored


def _twin(layer: nn.Module, kind: Any, without: str) -> Any:
    """A module of another class with the settings, parameters, buffers and parts of ``layer``, except one."""
    twin, common = kind.__new__(kind), nn.Module().__dict__
    nn.Module.__init__(twin)
    twin.__dict__.update({name: value for name, value in layer.__dict__.items() if name not in common})
    for own, others in ((twin._parameters, layer._parameters), (twin._buffers, layer._buffers)):
        cast(Any, own).update({name: value for name, value in others.items() if name != without})
    twin._modules.update({name: part for name, part in layer._modules.items() if name != without})
    return twin.train(layer.training)


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
    plain = _twin(layer, type(layer).__mro__[1], without="stored")
    if isinstance(layer, StoredAttention):
        plain.in_proj_weight = nn.Parameter(layer.in_proj_weight, requires_grad=False)
        plain.out_proj = _opened(cast(StoredLinear, layer.out_proj))
    else:
        plain.weight = nn.Parameter(layer.weight, requires_grad=False)
    return plain
