"""Weights of a frozen base in fewer bytes: bf16, int8 or NF4, turned back into floats layer by layer as they are used.

Only the weights are rounded; activations keep their precision. A layer's floats exist while it computes, and backward
computes them again instead of saving them, so gradient passes to the inputs at the memory of the stored weights.
Vectors (biases, norms), position embeddings and projections keep their precision: they are few and matter most.
"""

from __future__ import annotations

import re
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.errors import UserError
from vlkit.number_formats import pack_codes

WeightFormat = Literal["fp32", "bf16", "int8", "nf4"]
BLOCK = 64
"""Neighbouring values of a row that share an NF4 scale (QLoRA, Dettmers et al., 2023)."""
SLICE = 1 << 20
"""Bytes of NF4 codes that are opened at once."""
_WHOLE = {2: torch.int32, 4: torch.int64}
"""Bytes of a number -> dtype as large as two of them."""
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

    number_format: WeightFormat
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

    def open(
        self, codes: Tensor | None = None, scales: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """The weight [O, ...], by default in the dtype of the scales; also of chosen rows of codes and scales."""
        codes, scales = self.codes if codes is None else codes, self.scales if scales is None else scales
        dtype = dtype or scales.dtype
        if self.number_format == "nf4":
            rows = _from_nf4(codes, scales, self.tail.numel()).to(dtype)
        elif self.number_format == "int8":
            # Rounded once, as it is written: the product itself has the precision of the scales.
            rows = torch.mul(codes, scales, out=torch.empty_like(codes, dtype=dtype))
        else:
            rows = codes.to(dtype)  # no copy if the step computes in bf16
        return rows.view(len(codes), *self.tail)

    def open_for_product(self) -> Tensor:
        """The weight in the dtype in which a product now computes: autocast's, if it is on."""
        kind = self.codes.device.type
        return self.open(dtype=torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)

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
    """Inverse of :func:`_to_nf4`: [O, count] in the dtype of the scales."""
    pairs = _nf4_pairs(codes.device, scales.dtype)
    whole = _WHOLE.get(pairs.element_size())
    values = pairs.new_empty(codes.numel(), 2)
    # Both levels of a byte are looked up as one number; in slices, because an index takes four bytes for each code.
    for at in range(0, codes.numel(), SLICE):
        part, index = values[at : at + SLICE], codes.flatten()[at : at + SLICE].int()
        if whole:
            torch.index_select(pairs.view(whole).flatten(), 0, index, out=part.view(whole).flatten())
        else:
            torch.index_select(pairs, 0, index, out=part)
    values = values.view(len(codes), -1)
    if values.shape[1] % BLOCK == 0:
        values.unflatten(1, (-1, BLOCK)).mul_(scales.unsqueeze(2))
        return values
    return values[:, :count] * scales.repeat_interleave(BLOCK, 1)[:, :count]


def _nf4_pairs(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The two levels that each byte stands for, [256, 2]."""
    levels, codes = torch.tensor(NF4, dtype=dtype, device=device), torch.arange(256, device=device)
    return levels[torch.stack([codes % 16, codes // 16], 1)]


def stored_format(module: nn.Module) -> WeightFormat:
    """The format of a module's stored weights; fp32 if it has none."""
    for part in module.modules():
        if isinstance(part, StoredWeight):
            return part.number_format
    return "fp32"


def count_values(module: nn.Module) -> int:
    """Number of parameters of a module, stored weights included."""
    stored = {id(part.codes): part.numel for part in module.modules() if isinstance(part, StoredWeight)}
    return sum(p.numel() for p in module.parameters()) + sum(stored.values())
