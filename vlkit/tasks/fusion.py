"""A small trainable transformer in which learned queries read an image and a text; heads read the queries."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlkit.adapters.base import Encoded
from vlkit.adapters.facts import MethodOptions
from vlkit.adapters.saved.mode import Saved, compressed
from vlkit.errors import UserError
from vlkit.tasks.shared_cells import products


class HasTokens(Protocol):
    """A tower, or what stands behind one: ``token_dim`` is the width of its tokens."""

    @property
    def token_dim(self) -> int: ...


class HasCells(Protocol):
    """An encoded image: :class:`~vlkit.adapters.base.Encoded`, or cells that a task made of one."""

    @property
    def tokens(self) -> Tensor: ...

    @property
    def grid(self) -> tuple[int, int] | None: ...

    @property
    def joint(self) -> Tensor | None: ...


FREQUENCIES = 6
"""Number of frequencies in the position codes of image cells: pi, 2 pi, 4 pi ... per image side."""
CODES = 4 * FREQUENCIES + 2
"""Width of the position codes."""


@dataclass
class FusionOptions:
    """Options of the transformer that fuses image and text."""

    width: int = 128
    """Width of the fusion transformer's tokens."""
    layers: int = 3
    """Layers of the fusion transformer."""
    heads: int = 4
    """Attention heads; must divide the width."""
    neck: int = 0
    """Convolutional blocks on the image cells before the first layer."""
    dropout: float = 0.1
    """Dropout rate on attention and feed-forward outputs, and on attention weights."""
    update_image: bool = False
    """Update image cells in each layer too; false: cells are read-only, at a fraction of the time and memory."""
    match: bool = False
    """Begin with the similarities of text tokens and image cells in the base's joint space, where both towers have one:
    they bias the attention to the cells, and the share of the image that matches a token is added to it."""
    checkpointing: bool = False
    """Recompute layers in backward instead of saving their activations."""
    saved: Literal["adapter", "fp32", "int8", "int4"] = "adapter"
    """Format of the activations that fusion and head save for backward; adapter: as --adapter.saved, fp32 for a method
    without that option and with --fusion.checkpointing."""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise UserError(f"--fusion.{name} {getattr(self, name)}: must be at least 1")
        if self.neck < 0:
            raise UserError(f"--fusion.neck {self.neck}: must be 0 or more")
        if self.width % self.heads:
            raise UserError(f"--fusion.heads {self.heads}: does not divide --fusion.width {self.width}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"--fusion.dropout {self.dropout}: must be at least 0 and less than 1")
        if self.checkpointing and self.saved in ("int8", "int4"):
            raise UserError(
                f"--fusion.saved {self.saved}: --fusion.checkpointing saves no activations that could be compressed; "
                "leave one of the two out"
            )

    def beside(self, adapter: MethodOptions) -> FusionOptions:
        """The options beside an adapter: ``saved`` is a format."""
        saved = "fp32" if self.checkpointing else getattr(adapter, "saved", "fp32")
        return replace(self, saved=saved) if self.saved == "adapter" else self


class Fusion(nn.Module):
    """Small trainable transformer over adapted visual tokens (with 2-D positions), text tokens and learned queries.

    In each layer, queries and text tokens attend to each other and to the image cells. Position codes depend on the
    centre of a cell in the image (0..1), so any grid works. Masked text tokens are never read.

    Args:
        image, text: the towers whose tokens it reads (for their widths).
        options: see :class:`FusionOptions`.
        queries: Q, number of learned queries.

    Attributes:
        width: width of the query states.
    """

    def __init__(self, image: HasTokens, text: HasTokens, options: FusionOptions, queries: int = 1) -> None:
        super().__init__()
        self.width = width = options.width
        self.update_image, self.checkpointing = options.update_image, options.checkpointing
        self.saved: Saved = "fp32" if options.saved == "adapter" else options.saved
        self.image_in = nn.Sequential(nn.LayerNorm(image.token_dim), nn.Linear(image.token_dim, width))
        self.text_in = nn.Sequential(nn.LayerNorm(text.token_dim), nn.Linear(text.token_dim, width))
        self.positions = nn.Linear(CODES, width)
        self.neck = nn.ModuleList(NeckBlock(width) for _ in range(options.neck))
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        # Token type: cell, other image token (class, registers), text.
        self.kinds = nn.Parameter(torch.randn(3, width) * 0.02)
        self.image_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(FusionLayer(width, options.heads, options.dropout) for _ in range(options.layers))
        self.norm = nn.LayerNorm(width)
        spaces = {getattr(tower, "joint_dim", None) for tower in (image, text)}
        matches = options.match and len(spaces) == 1 and None not in spaces and not options.update_image
        self.match = Match(width, options.layers, options.heads) if matches else None

    def compressed(self) -> contextlib.AbstractContextManager[Any]:
        """Inside the context, a head saves activations in the format of the fusion."""
        return compressed(self.saved)

    def forward(self, image: HasCells | None, text: Encoded, owner: Tensor | None = None) -> list[Tensor]:
        """Query states after each layer.

        Args:
            image: tokens of P images; None = no image is read.
            text: tokens of B texts.
            owner: [B] int64, the image of each text, where texts share images; None: P = B, in the same order.

        Returns:
            One [B, Q, width] for each layer, normed.
        """
        words = self.text_in(text.tokens) + self.kinds[2]
        cells = None if image is None else self.image_tokens(image)
        count = len(self.queries)
        state = torch.cat([self.queries.expand(len(words), -1, -1).to(words.dtype), words], dim=1)
        similar = None
        if self.match is not None and image is not None:
            similar = self.match.similarities(image, text, owner, count)
            state = state + self.match.areas(similar).to(state.dtype)
        mask = text.mask
        if mask is not None:
            mask = F.pad(mask, (count, 0 if cells is None else cells.shape[1]), value=True)[:, None, None]
        seen = None
        if cells is not None and self.update_image:
            state = torch.cat([state, cells if owner is None else cells[owner]], dim=1)
        elif cells is not None:
            seen = self.image_norm(cells)
        found = []
        for number, layer in enumerate(self.layers):
            mine = (
                mask if similar is None or self.match is None else self.match.bias(number, similar, mask, state.dtype)
            )
            if self.checkpointing and self.training:
                state = checkpoint(layer, state, seen, owner, mine, use_reentrant=False)
            else:
                state = layer(state, seen, owner, mine)
            found.append(self.norm(state[:, :count]))
        return found

    def image_tokens(self, image: HasCells) -> Tensor:
        """[P, L, width]: the image's tokens; cells carry their position code."""
        tokens = self.image_in(image.tokens)
        if image.grid is None:
            return tokens + self.kinds[1]
        rows, columns = image.grid
        others, cells = tokens.split([tokens.shape[1] - rows * columns, rows * columns], dim=1)
        codes = cell_codes(rows, columns, tokens.device).to(self.positions.weight.dtype)
        cells = cells + self.positions(codes) + self.kinds[0]
        for block in self.neck:
            cells = block(cells, image.grid)
        return torch.cat([others + self.kinds[1], cells], dim=1)


class Match(nn.Module):
    """Similarities of text tokens and image tokens in the base's joint space, as a start for the fusion.

    A contrastive base knows which cells show what a text names (MaskCLIP, Zhou et al., ECCV 2022). Attention with
    random weights would have to learn that again. Two uses, both our own: each head adds the similarities, times a
    learned gain, to its attention logits; and each text token is told which share of the image is similar to it, at
    :data:`LEVELS` levels, because attention weights sum to 1 whether anything matches or not.
    """

    LEVELS = 8

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        # Heads from indifferent to sharp: cosine similarities of cells differ by a few tenths.
        self.gain = nn.Parameter(torch.linspace(0, 12, heads).repeat(layers, 1))
        self.levels = nn.Parameter(torch.linspace(0.05, 0.75, self.LEVELS))
        self.steepness = nn.Parameter(torch.tensor(20.0))
        self.to_state = nn.Linear(self.LEVELS, width)

    def similarities(self, image: HasCells, text: Encoded, owner: Tensor | None, queries: int) -> Tensor:
        """Cosine similarities [B, queries + L, V] float32 of the text's tokens with the image's; queries stand for the
        whole text.
        """
        assert image.joint is not None  # __init__ asked for a joint space
        cells = F.normalize(image.joint.float(), dim=-1)
        whole = text.pooled.unsqueeze(1).expand(-1, queries, -1)
        words = F.normalize(torch.cat([whole, text.joint], dim=1).float(), dim=-1)
        return products(words, cells, owner)

    def areas(self, similar: Tensor) -> Tensor:
        """[B, S, width]: for each token the share of the image above each level of similarity, as a state."""
        shares = [torch.sigmoid(self.steepness * (similar - level)).mean(-1) for level in self.levels]
        return self.to_state(torch.stack(shares, dim=-1).to(self.to_state.weight.dtype))

    def bias(self, layer: int, similar: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """[B, heads, S, S + V], added to the attention logits: gains times similarities, -inf where ``mask`` is
        False.
        """
        size = similar.shape[1]
        bias = F.pad(self.gain[layer][:, None, None] * similar.unsqueeze(1), (size, 0)).to(dtype)
        return bias if mask is None else bias.masked_fill(~mask, -math.inf)


class NeckBlock(nn.Module):
    """Pre-norm 3 x 3 convolution with a residual: neighbouring cells exchange information."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.around = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Linear(width, width)

    def forward(self, cells: Tensor, grid: tuple[int, int]) -> Tensor:
        """[P, rows * columns, width] in and out."""
        seen = self.around(self.norm(cells).transpose(1, 2).unflatten(2, grid))
        return cells + self.out(F.relu(seen.flatten(2).transpose(1, 2)))


class FusionLayer(nn.Module):
    """Pre-norm attention and feed-forward; keys come from the tokens themselves and from read-only tokens."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_in = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width)
        self.to_key_value = nn.Linear(width, 2 * width)
        self.to_seen = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm_hidden = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, state: Tensor, seen: Tensor | None, owner: Tensor | None, mask: Tensor | None) -> Tensor:
        """Updated states.

        Args:
            state: [B, S, width], tokens that attend and are attended to.
            seen: [P, V, width], read-only tokens, normed; None = there are none.
            owner: [B] int64, row of ``seen`` for each row of ``state``; None: P = B, in the same order.
            mask: bool, to [B, heads, S, S + V], True = may be attended to; None = everything.

        Returns:
            [B, S, width].
        """
        normed = self.norm_in(state)
        keys = self.to_key_value(normed)
        if seen is not None:
            shared = self.to_seen(seen)
            keys = torch.cat([keys, shared if owner is None else shared[owner]], dim=1)
        key, value = (self._split(part) for part in keys.chunk(2, dim=-1))
        rate = self.dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(self._split(self.to_query(normed)), key, value, mask, rate)
        state = state + F.dropout(self.out(read.transpose(1, 2).flatten(2)), rate)
        # ReLU saves for backward only its output, which the next layer saves anyway; GELU would save its input as well.
        hidden = F.relu(self.expand(self.norm_hidden(state)))
        return state + F.dropout(self.contract(hidden), rate)

    def _split(self, tokens: Tensor) -> Tensor:
        """[B, S, width] -> [B, heads, S, width / heads]."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def cell_codes(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Position codes of the cells of a grid, [rows * columns, CODES] float32, row by row.

    The centre of each cell as (x, y) in -1..1, then sines and cosines of both at frequencies pi, 2 pi, 4 pi ...
    """
    y = (torch.arange(rows, device=device) + 0.5) / rows
    x = (torch.arange(columns, device=device) + 0.5) / columns
    centres = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).flatten(0, 1)  # (x, y)
    angles = centres[:, :, None] * (math.pi * 2.0 ** torch.arange(FREQUENCIES, device=device))
    return torch.cat([2 * centres - 1, angles.sin().flatten(1), angles.cos().flatten(1)], dim=1)
