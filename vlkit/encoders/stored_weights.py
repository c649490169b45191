"""Weights of a frozen base in fewer bytes: bf16, int8 or NF4, turned back into floats layer by layer as they are used.

Only the weights are rounded; activations keep their precision. A layer's floats exist while it computes, and backward
computes them again instead of saving them, so gradient passes to the inputs at the memory of the stored weights.
Vectors (biases, norms), position embeddings and projections keep their precision: they are few and matter most.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vlkit.errors import UserError
from vlkit.number_formats import pack_codes, unpack_codes

WeightFormat = Literal["fp32", "bf16", "int8", "nf4"]
BLOCK = 64
"""Neighbouring values of a row that share an NF4 scale (QLoRA, Dettmers et al., 2023)."""
SMALLEST = 4096
"""Tensors with fewer values keep their precision."""
# The sixteen levels of NF4: quantiles of a normal distribution, scaled to 1 and with an exact zero (QLoRA, appendix E).
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def named_format(name: str) -> tuple[str, WeightFormat]:
    """``NAME@int8`` -> ``NAME``, ``int8``; a name without format has fp32.

    Raises:
        UserError: an unknown format behind the last ``@`` of a name that is not a path.
    """
    bare, at, last = name.rpartition("@")
    if at and last in get_args(WeightFormat):
        return bare, cast(WeightFormat, last)
    if at and re.fullmatch(r"(fp|bf|nf|int|float)\d+", last):
        raise UserError(
            f"base {name!r}: no weight format {last!r}; the formats are {', '.join(get_args(WeightFormat))}"
        )
    return name, "fp32"


def with_format(name: str, weights: WeightFormat) -> str:
    """The name of a base whose weights are stored in a format: ``NAME@int8``; fp32 leaves the name as it is.

    Raises:
        UserError: the name states another format.
    """
    bare, stated = named_format(name)
    if weights == "fp32" or weights == stated:
        return name
    if stated != "fp32":
        raise UserError(f"--base_weights {weights}: base {name!r} states {stated}; give one of the two")
    return f"{bare}@{weights}"


class StoredWeight(nn.Module):
    """A weight as codes and scales (buffers, so that it is never trained).

    int8: one scale per output row, 1/127 of its largest magnitude. NF4: one per 64 neighbours of a row. bf16: none.

    Args:
        weight: [O, ...] floating point; rows are output channels.
        number_format: how to store it.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, number_format: WeightFormat) -> None:
        super().__init__()
        self.number_format, self.tail = number_format, weight.shape[1:]
        rows = weight.detach().flatten(1)
        if number_format == "bf16":
            # The scale only carries the dtype to compute in, which a cast of the module changes.
            codes, scales = rows.to(torch.bfloat16), rows.new_ones(1, 1)
        elif number_format == "int8":
            scales = rows.abs().amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny) / 127
            codes = (rows / scales).round_().clamp_(-127, 127).to(torch.int8)
        else:
            codes, scales = _to_nf4(rows)
        self.register_buffer("codes", codes.contiguous())
        self.register_buffer("scales", scales)

    @property
    def numel(self) -> int:
        """Number of values."""
        return len(self.codes) * self.tail.numel()

    def open(self, codes: Tensor | None = None, scales: Tensor | None = None) -> Tensor:
        """The weight [O, ...] in the dtype of the scales; also of chosen rows of codes and scales."""
        codes, scales = self.codes if codes is None else codes, self.scales if scales is None else scales
        if self.number_format == "nf4":
            rows = _from_nf4(codes, scales, self.tail.numel())
        elif self.number_format == "int8":
            rows = codes.to(scales.dtype).mul_(scales)
        else:
            rows = codes.to(scales.dtype)
        return rows.view(len(codes), *self.tail)

    def rows(self, start: int, stop: int) -> StoredWeight:
        """Output rows ``start .. stop - 1``; the codes are shared, not copied."""
        part = StoredWeight.__new__(StoredWeight)
        nn.Module.__init__(part)
        part.number_format, part.tail = self.number_format, self.tail
        part.register_buffer("codes", self.codes[start:stop])
        part.register_buffer("scales", self.scales if self.number_format == "bf16" else self.scales[start:stop])
        return part


def _to_nf4(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[O, N] -> codes [O, N / 2 rounded up] uint8 and scales [O, N / 64 rounded up]."""
    count = rows.shape[1]
    blocks = F.pad(rows, (0, -count % BLOCK)).unflatten(1, (-1, BLOCK))
    scales = blocks.abs().amax(2).clamp_min(torch.finfo(rows.dtype).tiny)
    levels = torch.tensor(NF4, dtype=rows.dtype, device=rows.device)
    bounds = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize((blocks / scales.unsqueeze(2)).flatten(1)[:, :count].contiguous(), bounds)
    return pack_codes(codes.to(torch.uint8), 4), scales


def _from_nf4(codes: Tensor, scales: Tensor, count: int) -> Tensor:
    levels = torch.tensor(NF4, dtype=scales.dtype, device=scales.device)
    values = levels[unpack_codes(codes, 4, count).int()]
    blocks = F.pad(values, (0, -count % BLOCK)).unflatten(1, (-1, BLOCK))
    return (blocks * scales.unsqueeze(2)).flatten(1)[:, :count]


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
        self.register_parameter("bias", whole.bias)

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


def stored_format(module: nn.Module) -> WeightFormat:
    """The format of a module's stored weights; fp32 if it has none."""
    return next((part.number_format for part in module.modules() if isinstance(part, StoredWeight)), "fp32")


def count_values(module: nn.Module) -> int:
    """Number of parameters of a module, stored weights included."""
    stored = {id(part.codes): part.numel for part in module.modules() if isinstance(part, StoredWeight)}
    return sum(p.numel() for p in module.parameters()) + sum(stored.values())
