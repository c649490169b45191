"""The linear maps of attentions as modules of their own, so that peft can update each of them.

torch's attention holds query, key and value in one parameter, and timm's in one linear layer. :func:`split_projections`
replaces them by three linear layers on the same weights; nothing is copied and the output stays the same.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vlkit.encoders.shapes_only import shapes_only
from vlkit.encoders.stored_layers import StoredAttention, StoredLinear
from vlkit.encoders.stored_weights import StoredWeight
from vlkit.errors import UserError

Which = Literal["all", "attention", "qv"]
"""Which linear maps a method updates: all of them, those of the attentions, or query and value alone."""

# Names that libraries give to query, key and value, and to the map behind the attention.
QUERY_KEY_VALUE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("q", "k", "v"),
)
OUT = ("out_proj", "out_lin", "proj", "o")
SPLIT = QUERY_KEY_VALUE[0]
# Exact classes: subclasses of other libraries may compute something else.
PLAIN = (nn.MultiheadAttention, StoredAttention, nn.Linear, StoredLinear)


class SplitAttention(nn.Module):
    """``nn.MultiheadAttention`` with four linear layers on the same weights, called as open_clip calls it.

    Args:
        whole: the attention; queries, keys and values have one width.
    """

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.batch_first, self.dropout = whole.num_heads, whole.batch_first, whole.dropout
        weight = whole.stored if isinstance(whole, StoredAttention) else cast(Tensor, whole.in_proj_weight)
        self.q_proj, self.k_proj, self.v_proj = _thirds(weight, whole.in_proj_bias)
        out = whole.out_proj
        # A plain layer: peft leaves the special class of torch's attention alone.
        self.out_proj = out if isinstance(out, StoredLinear) else _linear_on(out.weight, out.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        **unused: Any,
    ) -> tuple[Tensor, None]:
        """Attention of ``query`` over ``key`` and ``value``, as torch's module.

        Args:
            query, key, value: [B, L, D] (or [L, B, D] without ``batch_first``).
            key_padding_mask: [B, N] bool, True = must not be attended to.
            need_weights: ignored; the weights are not returned.
            attn_mask: [L, N] or [B * heads, L, N]; float, added to the scores, or bool, True = must not be attended to.
            is_causal: a hint of torch that comes with its mask; ignored.

        Returns:
            The output, shaped like ``query``, and None.
        """
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        heads = [
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        ]  # [B, heads, L, head width] each
        mask = _joint_mask(attn_mask, key_padding_mask, self.num_heads)
        rate = self.dropout if self.training else 0.0
        mixed = scaled_dot_product_attention(*heads, attn_mask=mask, dropout_p=rate)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None


class SplitLinear(nn.Module):
    """One linear layer for query, key and value as three, on the same weights; their outputs are concatenated.

    Args:
        whole: D -> 3 D', query first.
    """

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__()
        weight = whole.stored if isinstance(whole, StoredLinear) else whole.weight
        self.q_proj, self.k_proj, self.v_proj = _thirds(weight, whole.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., 3 D']."""
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)


def _thirds(weight: Tensor | StoredWeight, bias: Tensor | None) -> list[nn.Linear]:
    """Linear layers on the first, second and last third of the output rows."""
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    if isinstance(weight, Tensor):
        return [_linear_on(w, b) for w, b in zip(weight.chunk(3), biases, strict=True)]
    size = len(weight.codes) // 3
    return [StoredLinear(weight.rows(i * size, (i + 1) * size), _constant(b)) for i, b in enumerate(biases)]


def _constant(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)


def _linear_on(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer on these very tensors."""
    with shapes_only():
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _joint_mask(attn_mask: Tensor | None, padding: Tensor | None, heads: int) -> Tensor | None:
    """Both masks as the one of ``scaled_dot_product_attention``: float, or bool with True = may be read."""
    mask = attn_mask
    if mask is not None:
        mask = ~mask if mask.dtype == torch.bool else mask
        mask = mask.unflatten(0, (-1, heads)) if mask.ndim == 3 else mask
    if padding is None:
        return mask
    read = ~padding[:, None, None, :]
    if mask is None or mask.dtype == torch.bool:
        return read if mask is None else mask & read
    return mask.masked_fill(~read, -torch.inf)


def split_projections(encoder: nn.Module) -> None:
    """Replace every attention that holds query, key and value in one piece; weights are shared, not copied.

    A fused layer whose bias is kept apart (EVA, BEiT) stays as it is: its module does not call it.
    """
    for owner in list(encoder.modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, nn.MultiheadAttention) and type(child) in PLAIN and child._qkv_same_embed_dim:
                setattr(owner, name, SplitAttention(child))
            elif (
                name == "qkv"
                and isinstance(child, nn.Linear)
                and type(child) in PLAIN
                and getattr(owner, "q_bias", None) is None
            ):
                setattr(owner, name, SplitLinear(child))


def check_reachable(encoder: nn.Module) -> None:
    """Refuse a tower whose query, key and value are one parameter that :func:`split_projections` does not split.

    peft would update the other layers and silently leave the attention as it is.

    Raises:
        UserError: names the class.
    """
    for module in encoder.modules():
        if "in_proj_weight" in module._parameters and not isinstance(module, nn.MultiheadAttention):
            raise UserError(
                f"attention {type(module).__name__}: query, key and value are one parameter, which peft cannot update; "
                "choose another --adapter.kind, or a base with torch's attention (open_clip_torch before version 4)"
            )


def joined_state(encoder: nn.Module) -> dict[str, Tensor]:
    """The state dict of ``encoder`` as it would be without :func:`split_projections`."""
    state = encoder.state_dict()
    for path, owner in encoder.named_modules():
        if isinstance(owner, SplitAttention | SplitLinear):
            whole = f"{path}.in_proj_" if isinstance(owner, SplitAttention) else f"{path}."
            for leaf in ("weight", "bias"):
                parts = [state.pop(f"{path}.{name}.{leaf}", None) for name in SPLIT]
                if parts[0] is not None:
                    state[whole + leaf] = torch.cat(cast(list[Tensor], parts))
    return state


def _has_own_bias(attention: nn.Module) -> bool:
    """Whether an attention adds the biases of its fused layer itself (EVA, BEiT)."""
    return getattr(attention, "q_bias", None) is not None


def attention_maps(encoder: nn.Module, which: Which) -> list[str]:
    """Names of the linear layers of every attention in ``encoder``, after :func:`split_projections`.

    Args:
        encoder: the tower.
        which: ``attention``: query, key, value and output; ``qv``: query and value.
    """
    modules = dict(encoder.named_modules())
    found = []
    for path, owner in modules.items():
        # open_clip's pooling of a ResNet reads the weights of its layers without calling them.
        names = next((n for n in QUERY_KEY_VALUE if all(_is_linear(owner, part) for part in n)), None)
        if names is None or type(owner).__name__ == "AttentionPool2d":
            continue
        query, key, value = (f"{path}.{name}" for name in names)
        found += [query, value] if which == "qv" else [query, key, value, *_outputs(modules, path)]
    return found


def _outputs(modules: dict[str, nn.Module], path: str) -> list[str]:
    """The map behind the attention at ``path``: beside query, key and value, or where BERT and timm put it."""
    parent, _, last = path.rpartition(".")
    beside = [f"{path}.{name}" for name in OUT]
    elsewhere = {"self": [f"{parent}.output.dense"], "qkv": [f"{parent}.proj"]}.get(last, [])
    return [name for name in (*beside, *elsewhere) if isinstance(modules.get(name), nn.Linear)]


def _is_linear(owner: nn.Module, name: str) -> bool:
    return isinstance(getattr(owner, name, None), nn.Linear)
