"""The grounding head: from fused query states to boxes in the image.

The cells of a frozen tower say little about object boundaries, and a query that regresses coordinates learns slowly. So
the head goes from cells to a box in steps, from easy to hard:

1. A small convolutional *neck* mixes neighbouring cells; fusion and head both read its cells.
2. *Which box does each cell belong to?* Every cell predicts the box of the object it lies on, independent of the text,
   and learns this from all texts at once.
3. *Which cells?* A heat map. A cell scores whether it lies on an object at all; every word votes for cells separately,
   so that "red star" is where the votes of "red" and "star" agree; the fused query adds what depends on the whole text
   and image.
4. *Which box?* The box of the hottest cell, averaged with those of hot cells that agree with it. The mean over the
   whole heat map would, for an ambiguous text, lie between two objects and be wrong for both.
5. *Refinement.* The query adjusts that box slightly. Only this step learns from the box's L1 and GIoU: heat map and
   cells have their own losses, and a wrongly chosen object teaches them nothing about boxes.

Any tower that outputs cells works, with any grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from vlkit.adapters.base import Encoded
from vlkit.encoders.staged import StagedEncoder
from vlkit.errors import UserError
from vlkit.tasks.fusion import CODES, Fusion, NeckBlock, cell_codes
from vlkit.tasks.grounding.overlap import pairwise_iou

_REACH = 0.2
"""Unit, as a share of the image, in which a cell predicts the distances to the sides of its box."""
_MOST_CHANGE = 0.5
"""Bound on refinement: shift of the centre as a share of the sides, and change of the logarithm of the sides."""


@dataclass
class GroundingOptions:
    """Options of the head that turns fused queries into boxes."""

    queries: int = 1
    """Boxes predicted per text; several queries are matched one to one with the annotated boxes (for texts that name
    several objects)."""
    places: bool = True
    """Words and queries also vote for positions in the image, whatever is there; false: through the cells alone."""

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise UserError(f"--head.queries {self.queries}: must be at least 1")


@dataclass(frozen=True)
class Cells:
    """Cells of P images, as :class:`vlkit.tasks.fusion.Fusion` reads them.

    Attributes:
        tokens: [P, rows * columns, width], row by row.
        grid: rows and columns.
        codes: [rows * columns, CODES] float32, where each cell is (:func:`vlkit.tasks.fusion.cell_codes`).
        joint: [P, rows * columns, joint_dim], the tower's cells in its joint space; None if nothing reads them.
    """

    tokens: Tensor
    grid: tuple[int, int]
    codes: Tensor
    joint: Tensor | None = None


class Neck(nn.Module):
    """Cells of a tower with their position and context added.

    It runs before the fusion (whose own neck stays empty), because the head reads its cells too.

    Args:
        image: the image tower (for the width of its tokens).
        width: width of the new cells.
        blocks: convolutional blocks.
        match: also give the cells in the tower's joint space, if it has one (:class:`vlkit.tasks.fusion.Match`).

    Attributes:
        token_dim: width of the new cells.
        joint_dim: width of the joint space; None = cells are not given in it.
    """

    def __init__(self, image: StagedEncoder, width: int, blocks: int, match: bool = False) -> None:
        super().__init__()
        self.token_dim = width
        self.joint_dim = image.joint_dim if match else None
        self.enter = nn.Sequential(nn.LayerNorm(image.token_dim), nn.Linear(image.token_dim, width))
        self.positions = nn.Linear(CODES, width)
        self.blocks = nn.ModuleList(NeckBlock(width) for _ in range(blocks))

    def forward(self, image: Encoded) -> Cells:
        """Cells of P images; other tokens (class, registers) are left out.

        Raises:
            UserError: the tower's tokens are not image cells.
        """
        if image.grid is None:
            raise UserError("this base outputs no image cells, so grounding is not possible; choose another --base")
        rows, columns = image.grid
        tokens = image.tokens[:, -rows * columns :]
        codes = cell_codes(rows, columns, tokens.device)
        cells = self.enter(tokens) + self.positions(codes.to(self.positions.weight.dtype))
        for block in self.blocks:
            cells = block(cells, image.grid)
        joint = None if self.joint_dim is None else image.joint[:, -rows * columns :]
        return Cells(cells, image.grid, codes, joint)


class BoxPrediction(NamedTuple):
    """Boxes of B texts, all float32. A box is centre x, centre y, width, height as shares of the model's input.

    Sides are positive; a box may extend beyond the image.
    """

    boxes: Tensor
    """[B, Q, 4]."""
    scores: Tensor
    """[B, Q] logits of a box's quality: its IoU with a correct box; 0 for a box without object."""
    heat: Tensor
    """[B, Q, cells] logits of the heat map, row by row."""
    cells: Tensor
    """[B, cells, 4], the box that each cell predicts for its object, independent of the text."""
    grid: tuple[int, int]
    """Rows and columns of the cells."""


class BoxHead(nn.Module):
    """Query states, words and image cells -> boxes.

    Args:
        text: the text tower (for the width of its tokens).
        width: width of the query states and of the cells.
        places: words and queries also vote for positions.
    """

    def __init__(self, text: StagedEncoder, width: int, places: bool) -> None:
        super().__init__()
        self.key = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.thing = nn.Linear(width, 1)
        self.cell_box = _two_layers(width, width, 4)
        self.words = nn.Sequential(nn.LayerNorm(text.token_dim), nn.Linear(text.token_dim, width))
        self.point = nn.Linear(width, width)
        self.places = Places(text.token_dim, width) if places else None
        self.refine = _two_layers(2 * width + 4, width, 4)
        self.score = nn.Linear(width, 1)
        # The refinement starts at zero.
        last = cast(nn.Linear, self.refine[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, states: list[Tensor], image: Cells, text: Encoded, owner: Tensor) -> list[BoxPrediction]:
        """Boxes after each fusion layer.

        Args:
            states: a [B, Q, width] for each layer.
            image: cells of P images, from :class:`Neck`.
            text: tokens of B texts.
            owner: [B] int64, the image of each text.
        """
        keys = self.key(image.tokens)
        cells = self._cell_boxes(keys, image.codes)[owner]
        things = self.thing(keys).transpose(1, 2)[owner]
        keys, votes = keys[owner], self._votes(text)
        logits = [things] * len(states)
        if self.places is not None:
            named = things + self.places.named(text.tokens, text.mask, image.codes)
            logits = [named + self.places.meant(state, image.codes) for state in states]
        return [
            self._predict(state, votes, keys, own, cells, image.grid) for state, own in zip(states, logits, strict=True)
        ]

    def _cell_boxes(self, keys: Tensor, codes: Tensor) -> Tensor:
        """[P, cells, 4]: sides are predicted as distances from the cell's centre, the same way for every cell."""
        centres = codes[:, :2] / 2 + 0.5
        left_top, right_bottom = (_REACH * F.softplus(self.cell_box(keys).float())).split(2, dim=-1)
        return torch.cat([centres + (right_bottom - left_top) / 2, left_top + right_bottom], dim=-1)

    def _votes(self, text: Encoded) -> Tensor:
        """[B, 1, width]: the votes of all words."""
        return _sum_of_words(self.words(text.tokens), text.mask)

    def _predict(
        self, states: Tensor, votes: Tensor, keys: Tensor, things: Tensor, cells: Tensor, grid: tuple[int, int]
    ) -> BoxPrediction:
        meets = (self.point(states) + votes) @ keys.transpose(1, 2)
        heat = (meets * keys.shape[-1] ** -0.5 + things).float()
        first, share = agreed_boxes(heat.detach(), cells.detach())
        seen = share.to(keys.dtype) @ keys
        change = self.refine(torch.cat([states, seen, first.to(states.dtype)], dim=-1)).float()
        shift, stretch = (_MOST_CHANGE * change.tanh()).split(2, dim=-1)
        middle, sides = first.split(2, dim=-1)
        boxes = torch.cat([middle + shift * sides, sides * stretch.exp()], dim=-1)
        return BoxPrediction(boxes, self.score(states).squeeze(-1).float(), heat, cells, grid)


class Places(nn.Module):
    """Votes for positions in the image: logits of cells that depend on where a cell is, and not on what it shows.

    The keys of the cells hold their positions too, but beside everything else and normed together; these votes raised a
    weak seed of the demo data by four points (docs/results). They start at zero.

    Args:
        words: width of the text's tokens.
        width: width of the query states.
    """

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(words)
        self.words, self.point = nn.Linear(words, CODES), nn.Linear(width, CODES)
        for linear in (self.words, self.point):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def named(self, words: Tensor, mask: Tensor | None, codes: Tensor) -> Tensor:
        """[B, 1, cells]: the votes of all words [B, L, channels]; those that ``mask`` leaves out have none."""
        return self._at(_sum_of_words(self.words(self.norm(words)), mask), codes)

    def meant(self, states: Tensor, codes: Tensor) -> Tensor:
        """[B, Q, cells]: the votes of the query states."""
        return self._at(self.point(states), codes)

    @staticmethod
    def _at(votes: Tensor, codes: Tensor) -> Tensor:
        return votes @ codes.to(votes.dtype).T


def _sum_of_words(votes: Tensor, mask: Tensor | None) -> Tensor:
    """[B, L, ...] -> [B, 1, ...]; a masked word has no vote."""
    return (votes if mask is None else votes * mask.unsqueeze(-1)).sum(1, keepdim=True)


def agreed_boxes(heat: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """The box of the hottest cell, averaged with other cells' boxes, weighted by their heat and overlap with it.

    Args:
        heat: [B, Q, cells] logits.
        cells: [B, cells, 4] centre x, centre y, width, height.

    Returns:
        Boxes [B, Q, 4] in the same form, and the weights of the cells [B, Q, cells]: softmax of the heat times the IoU
        with the hottest cell's box, normalised.
    """
    corners = box_convert(cells, "cxcywh", "xyxy")
    hottest = heat.argmax(-1, keepdim=True).expand(-1, -1, 4)
    agreement = pairwise_iou(corners.unsqueeze(1), corners.gather(1, hottest).unsqueeze(2))
    weights = heat.softmax(-1) * agreement
    weights = weights / weights.sum(-1, keepdim=True)
    return weights @ cells, weights


def _two_layers(width_in: int, width: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width), nn.ReLU(), nn.Linear(width, width_out))


class Grounder(nn.Module):
    """Two adapted towers, their fusion and the box head: the model of grounding.

    Args:
        image, text: adapted encoders (``forward(x) -> Encoded``).
        neck: the neck on the image cells.
        fusion: the fusion of those cells and the text, with Q queries.
        head: the head on its query states.
    """

    def __init__(self, image: nn.Module, text: nn.Module, neck: Neck, fusion: Fusion, head: BoxHead) -> None:
        super().__init__()
        self.image, self.text, self.neck, self.fusion, self.head = image, text, neck, fusion, head

    def forward(self, pixels: Tensor, ids: Tensor, owner: Tensor) -> list[BoxPrediction]:
        """Boxes of B texts about P images; each image is encoded once.

        Args:
            pixels: [P, 3, H, W].
            ids: [B, L] int64.
            owner: [B] int64, the image of each text.

        Returns:
            A prediction for each fusion layer; the last one is the answer, the others are for auxiliary losses.
        """
        image, text = self.image(pixels), self.text(ids)
        with self.fusion.compressed():
            cells = self.neck(image)
            return self.head(self.fusion(cells, text, owner), cells, text, owner)
