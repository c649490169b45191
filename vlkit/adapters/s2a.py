"""S2A, structure-activation synergy (arXiv 2503.08154): trained parts that need few saved activations, in 4 bits each.

There is no public code; the structure below is our concretisation and no parity with published results is claimed.

    bias      the bias of every linear map and the shift of every norm; needs no saved input
    prompts   P learned tokens in front of the sequence, N(0, 0.02); removed before pooling
    side      h_{i+1} += relu(h_i A_i^T) B_i^T,  A_i [r, D] Kaiming, B_i [D, r] zero

Weight matrices, gains and embeddings stay frozen, so a frozen linear map saves nothing. What remains of the saved
activations is compressed (:mod:`vlkit.adapters.saved`). Without bias and prompts, ``h_i`` is detached inside the side
modules, and no gradient passes below the first of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.adapters.base import Encoded
from vlkit.adapters.facts import Reads
from vlkit.adapters.saved.mode import Saved, compressed, saved_option
from vlkit.adapters.tuning import TunedEncoder, TunedOptions, _is_bias
from vlkit.encoders.blocks.anatomy import Opaque, anatomy_of
from vlkit.encoders.staged import StagedEncoder, Stream, freeze, in_weights_format
from vlkit.errors import UserError

PROMPT_STD = 0.02


class SideModule(nn.Module):
    """``relu(x A^T) B^T``: [..., D] tokens or a grid [B, D, H, W], same shape out. A starts Kaiming, B at 0.

    Args:
        width: D.
        rank: r.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        nn.init.kaiming_normal_(self.down.weight)
        nn.init.zeros_(self.up.weight)
        self.starts_at_base = ("up.weight",)  # scaled with the adapter (vlkit.adapters.mix)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if x.dim() == 4:
            return self.up(F.relu(self.down(x.movedim(1, -1)))).movedim(-1, 1)
        return self.up(F.relu(self.down(x)))


class S2aEncoder(TunedEncoder):
    """A base with trained biases, prompts and side modules. ``forward(x)`` gives :class:`Encoded`.

    Args:
        base: the tower; ``requires_grad`` of its biases decides whether they train.
        prompts: P; 0 = none.
        deep: each block gets its own prompts, which replace those of the block before.
        layers: blocks (0-based) with a side module.
        rank: r.
        saved: format of the saved activations.
    """

    def __init__(
        self, base: StagedEncoder, prompts: int, deep: bool, layers: tuple[int, ...], rank: int, saved: Saved
    ) -> None:
        super().__init__(base, saved=saved)
        shape = (base.depth if deep else 1, prompts, base.widths[0])
        self.prompts = nn.Parameter(torch.empty(shape).normal_(std=PROMPT_STD)) if prompts else None
        self.sides = nn.ModuleDict({str(i): SideModule(base.widths[i], rank) for i in layers})
        if prompts:
            self.never_mixed = "prompts cannot be scaled (train s2a with --adapter.prompts 0 for that)"
        self._detach = not prompts and not any(p.requires_grad for p in base.parameters())

    def adds_at(self, name: str) -> int | None:
        """See :meth:`TunedEncoder.adds_at`: side modules add at their block."""
        return int(name.split(".")[1]) if name.endswith("up.weight") else None

    def forward(self, x: Any) -> Encoded:
        """Run every block on the tokens and the prompts."""
        with compressed(self.saved):
            start = self.base.embed(in_weights_format(self.base, x))
            stream = start if self.prompts is None else with_prompts(start, self.prompts[0])
            for i in range(self.base.depth):
                if self.prompts is not None and 0 < i < len(self.prompts):
                    stream = _replace_prompts(stream, self.prompts[i])
                before, stream = stream.hidden, self.base.block(i, stream)
                if str(i) in self.sides:
                    added = self.sides[str(i)](before.detach() if self._detach else before)
                    stream = stream.replace(hidden=stream.hidden + added)
        if self.prompts is not None:
            stream = start.replace(hidden=stream.hidden[:, self.prompts.shape[1] :])
        return Encoded(self.base, stream)


# --- prompts in a stream ----------------------------------------------------------------------------------------------


def with_prompts(stream: Stream, prompts: Tensor) -> Stream:
    """Put prompts [P, D] in front of the sequence; every token may attend to them."""
    count, length = len(prompts), stream.hidden.shape[1]
    hidden = torch.cat([prompts.to(stream.hidden.dtype).expand(stream.hidden.shape[0], -1, -1), stream.hidden], dim=1)
    return stream.replace(
        hidden=hidden,
        mask=None if stream.mask is None else F.pad(stream.mask, (count, 0), value=True),
        summary=None if stream.summary is None else stream.summary + count,
        extras=_longer(stream.extras, length, count),
    )


def _replace_prompts(stream: Stream, prompts: Tensor) -> Stream:
    shape = stream.hidden.shape[0], *prompts.shape
    return stream.replace(
        hidden=torch.cat([prompts.to(stream.hidden.dtype).expand(shape), stream.hidden[:, len(prompts) :]], 1)
    )


def _longer(extras: dict[str, Any], length: int, count: int) -> dict[str, Any]:
    """The other inputs of the blocks for ``count`` more tokens in front of ``length``: their masks grow."""
    found = {}
    for name, value in extras.items():
        if isinstance(value, dict):
            value = _longer(value, length, count)
        elif isinstance(value, Tensor) and name in ("attn_mask", "attention_mask"):
            value = longer_mask(value, length, count)
        found[name] = value
    return found


def longer_mask(mask: Tensor, length: int, count: int) -> Tensor:
    """A mask (bool, True = may be attended to, or float, added) for ``count`` more tokens in front.

    Args:
        mask: [L, L], causal; or [..., 1 or L, L].
        length: L.
        count: P.

    Returns:
        [P + L, P + L], causal; or [..., 1 or P + L, P + L]: all see the prompts, which see what the first token sees.
    """
    allowed = mask.dtype == torch.bool
    if mask.dim() == 2 and mask.shape == (length, length):
        full = mask.new_full((count + length,) * 2, True if allowed else -torch.inf)
        return full.tril() if allowed else full.triu(1)
    wide = F.pad(mask, (count, 0), value=True if allowed else 0.0)
    if mask.shape[-2] != length:
        return wide
    return torch.cat([wide[..., :1, :].expand(*wide.shape[:-2], count, -1), wide], dim=-2)


# --- options ----------------------------------------------------------------------------------------------------------


@dataclass
class S2aOptions(TunedOptions):
    """S2A: biases, prompts and low-rank side modules train, and all saved activations take 4 bits per value."""

    kind: Literal["s2a"] = "s2a"
    feeds_decoder: ClassVar[bool] = False
    running: ClassVar[tuple[str, ...]] = ("saved",)
    bias: bool | None = None
    """Train the biases of the base; default: where the tower has any."""
    prompts: int | None = None
    """Learned tokens in front of the sequence; 0 = none; default: 8 where the tower can take more tokens."""
    deep: bool = False
    """Give each block its own prompts."""
    rank: int = 8
    """Width of the side modules; 0 = none."""
    layers: tuple[int, ...] | None = None
    """Blocks (0-based) with a side module; default: all that keep their width."""
    saved: Saved = saved_option("int4")
    """Format of the saved activations: fp32 (unchanged), int8 or int4. The forward is always exact; the gradient is
    rounded."""

    def __post_init__(self) -> None:
        for name in ("prompts", "rank"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"--adapter.{name} {getattr(self, name)}: must be 0 or more")
        if self.bias is False and self.prompts == 0 and (self.rank == 0 or self.layers == ()):
            raise UserError(
                "--adapter.bias false with no prompts and no side modules: nothing trains; keep one of them"
            )
        if self.deep and self.prompts == 0:
            raise UserError("--adapter.deep: needs prompts; leave out --adapter.prompts 0")

    def build(self, encoder: StagedEncoder, reads: Reads = "pooled") -> S2aEncoder:
        """Freeze ``encoder`` but for its biases and add prompts and side modules; both views are adapted.

        Raises:
            UserError: an option was given that the tower cannot take, or nothing in it could train.
        """
        freeze(encoder)
        encoder._frozen = False
        biases = [p for name, p in encoder.named_parameters() if _is_bias(name)]
        if self.bias and not biases:
            raise UserError(f"--adapter.bias true: {encoder.kind} has no biases to train; leave it out")
        for parameter in biases if self.bias is not False else ():
            parameter.requires_grad_(True)
        layers = self._side_layers(encoder)
        prompts = self._prompts(encoder)
        if not (prompts or layers or (biases and self.bias is not False)):
            raise UserError(
                f"--adapter.kind s2a: with these options nothing in {encoder.kind} trains; choose another kind"
            )
        return S2aEncoder(encoder, prompts, self.deep and prompts > 0, layers, self.rank, self.saved)

    def build_stacks(self, encoder: StagedEncoder, decoder: StagedEncoder) -> Any:
        """Not supported.

        Raises:
            UserError: always.
        """
        raise self.refusal("has no prompts and side modules for a decoder", "feeds_decoder")

    def _prompts(self, encoder: StagedEncoder) -> int:
        try:
            for i in range(encoder.depth):
                anatomy_of(encoder.transformer_block(i))
        except Opaque as error:
            if self.prompts:
                raise UserError(f"--adapter.prompts {self.prompts}: {error}; use --adapter.prompts 0") from None
            return 0
        return 8 if self.prompts is None else self.prompts

    def _side_layers(self, encoder: StagedEncoder) -> tuple[int, ...]:
        if self.rank == 0:
            return ()
        fitting = tuple(i for i in range(encoder.depth) if encoder.widths[i] == encoder.widths[i + 1])
        if self.layers is None:
            return fitting
        if not set(self.layers) <= set(fitting) or list(self.layers) != sorted(set(self.layers)):
            raise UserError(
                f"--adapter.layers {list(self.layers)}: give ascending block numbers among {list(fitting)}, the blocks "
                "that keep their width"
            )
        return tuple(self.layers)
