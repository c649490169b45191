"""Run any library's blocks with compressed saved activations: ``with compressed("int4"): block(x)``.

Libraries call torch's functions, so a torch function mode replaces those that save activations by the ones of
:mod:`vlkit.adapters.saved.functions`; no model code changes. Two operations have no function of their own in the
libraries, QuickGELU and T5's RMS norm: :func:`name_operations` replaces their modules by equal ones that the mode sees.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from vlkit.adapters.saved.functions import attention, curve, dropout, layer_norm, linear, product, softmax
from vlkit.adapters.saved.kept import swapped

Saved = Literal["fp32", "int8", "int4"]
"""Format of the activations that are saved for backward; fp32 = unchanged, in the dtype of the computation."""

BITS: dict[str, int | None] = {"fp32": None, "int8": 8, "int4": 4}


def saved_option(default: Saved = "fp32") -> Any:
    """The field ``saved: Saved`` of a method whose gradient passes through blocks of the base; also ``--saved``."""
    return dataclasses.field(default=default, metadata={"alias": "saved"})


def compressed(saved: Saved) -> contextlib.AbstractContextManager[Any]:
    """Inside the context, operations with gradient save what backward needs in the given format; outputs are exact."""
    bits = BITS[saved]
    return contextlib.nullcontext() if bits is None else _Compressed(bits)


class _Compressed(TorchFunctionMode):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self._bits = bits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = _HANDLERS.get(func) if torch.is_grad_enabled() else None
        found = NotImplemented if handler is None else handler(self._bits, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if found is NotImplemented else found


# --- operations without a function in their library -------------------------------------------------------------------


def quick_gelu(x: Tensor) -> Tensor:
    """``x sigmoid(1.702 x)``, as one function that :func:`compressed` recognises."""
    if has_torch_function_unary(x):
        return handle_torch_function(quick_gelu, (x,), x)
    return curve("quick_gelu", x)


def tanh_gelu(x: Tensor) -> Tensor:
    """GELU with the tanh approximation, as transformers writes it out, as one function."""
    if has_torch_function_unary(x):
        return handle_torch_function(tanh_gelu, (x,), x)
    return F.gelu(x, approximate="tanh")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last axis as transformers computes it, as one function."""
    if has_torch_function_unary(x):
        return handle_torch_function(rms_norm, (x,), x, weight, eps)
    return layer_norm(x, weight, None, eps, center=False)


class _QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)


class _TanhGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return tanh_gelu(x)


class _RmsNorm(nn.Module):
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.variance_epsilon)


def name_operations(model: nn.Module) -> None:
    """Replace modules whose operations torch functions do not name; names of parameters stay."""
    # Imported here because it takes seconds, and only compressed runs need it.
    from transformers.activations import NewGELUActivation, QuickGELUActivation
    from transformers.models.t5.modeling_t5 import T5LayerNorm

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, QuickGELU | QuickGELUActivation):
                setattr(parent, name, _QuickGelu())
            elif isinstance(child, NewGELUActivation):
                setattr(parent, name, _TanhGelu())
            elif type(child) is T5LayerNorm:
                setattr(parent, name, _RmsNorm(child))


# --- torch functions -> compressed ones -------------------------------------------------------------------------------
# A handler takes the bits and the arguments of its function; NotImplemented = run the function itself.


def _curve(name: str) -> Callable[..., Any]:
    def handle(bits: int, input: Tensor, inplace: bool = False) -> Any:
        # In place or not, callers use the result; x itself is not needed for backward.
        return curve(name, input, bits) if input.requires_grad else NotImplemented

    return handle


def _gelu(bits: int, input: Tensor, approximate: str = "none") -> Any:
    return _curve("gelu" if approximate == "none" else "tanh_gelu")(bits, input)


def _softmax(bits: int, input: Tensor, dim: int | None = None, *more: Any, **options: Any) -> Any:
    dtype = options.get("dtype")
    if dim not in (-1, input.dim() - 1) or more or not input.requires_grad:
        return NotImplemented
    return softmax(input, bits, dtype)


def _layer_norm(
    bits: int,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    if len(normalized_shape) != 1 or not any(t is not None and t.requires_grad for t in (input, weight, bias)):
        return NotImplemented
    return layer_norm(input, weight, bias, eps, bits)


def _rms_norm(bits: int, x: Tensor, weight: Tensor, eps: float) -> Any:
    if not (x.requires_grad or weight.requires_grad):
        return NotImplemented
    return layer_norm(x, weight, None, eps, bits, center=False)


def _linear(bits: int, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return linear(input, weight, bias, bits)


def _dropout(bits: int, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return dropout(input, p, bits) if training and input.requires_grad else NotImplemented


def _product(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    def handle(bits: int, a: Any, b: Any, *more: Any, **options: Any) -> Any:
        both = isinstance(a, Tensor) and isinstance(b, Tensor) and a.requires_grad and b.requires_grad
        if not both or max(a.dim(), b.dim()) < 3 or more or options:
            return NotImplemented
        return product(run, a, b, bits)

    return handle


def _attention(bits: int, query: Tensor, key: Tensor, value: Tensor, *more: Any, **options: Any) -> Any:
    names = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    return attention(query, key, value, bits, **dict(zip(names, more, strict=False)), **options)


def _multi_head_attention(bits: int, *args: Any, **options: Any) -> Any:
    """``nn.MultiheadAttention``'s function on one sequence, [L, B, D], in the library's order of operations."""
    query, key, value, _, heads, in_weight, in_bias, bias_k, bias_v, add_zero, p, out_weight, out_bias = args
    plain = query is key and key is value and bias_k is None and bias_v is None and not add_zero
    mask, padding = options.get("attn_mask"), options.get("key_padding_mask")
    if not plain or query.dim() != 3 or options.get("need_weights", True) or padding is not None or in_weight is None:
        return NotImplemented
    length, batch, width = query.shape
    # What is kept of the input is that of the norm before it, which the module has transposed.
    kept = swapped(query, bits) if in_weight.requires_grad else None
    qkv = linear(query, in_weight, in_bias, bits, kept)
    qkv = qkv.unflatten(-1, (3, width)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
    q, k, v = (x.view(length, batch, heads, width // heads).permute(1, 2, 0, 3) for x in qkv)
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, -torch.inf)
        mask = mask[None, None] if mask.dim() == 2 else mask.view(batch, heads, -1, length)
        mask = mask.to(q.dtype)
    causal = bool(options.get("is_causal")) and mask is None
    p = p if options.get("training", True) else 0.0
    mixed = attention(q, k, v, bits, attn_mask=mask, dropout_p=p, is_causal=causal)
    mixed = mixed.permute(2, 0, 1, 3).contiguous().view(batch * length, width)
    return linear(mixed, out_weight, out_bias, bits).view(length, batch, width), None


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.gelu: _gelu,
    F.silu: _curve("silu"),
    quick_gelu: _curve("quick_gelu"),
    tanh_gelu: _curve("tanh_gelu"),
    rms_norm: _rms_norm,
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    F.dropout: _dropout,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), _curve("relu")),
    **dict.fromkeys((torch.tanh, Tensor.tanh), _curve("tanh")),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid), _curve("sigmoid")),
    **dict.fromkeys((F.softmax, torch.softmax, Tensor.softmax), _softmax),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm), _product(torch.matmul)),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__), _product(torch.mul)),
}
"""Torch function -> handler. Everything else (sums, reshapes, embeddings, convolutions) runs unchanged."""
