"""Visual tokens in the width of a T5: the visual embedding of CLIP-T5 (VL-T5, ICML 2021; LST, NeurIPS 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BOX = 5
"""Numbers of a box: its four sides and its area."""


class VisualEmbedding(nn.Module):
    """Grid features of one or several images -> visual tokens.

    With D the width of the T5, j the place of a cell in its pooled grid, i the number of its image and V the number of
    rows of the T5's token table:

        visual = RMS(W f + b) + RMS(W_box box + b_box) + E_image[i] + E_token[V - 1 - j]

    Grid cells have no boxes: all are zero, so the second term is one learned vector. The token table belongs to the
    frozen T5; the order of the cells is read from its end without training it.

    Args:
        features: C, width of the grid features.
        width: D.
        side: cells per side after pooling; grids that are not larger are left as they are.
        images: most images per example.
        eps: of the RMS norms.
    """

    def __init__(self, features: int, width: int, side: int = 6, images: int = 2, eps: float = 1e-6) -> None:
        super().__init__()
        self.side = side
        self.project, self.project_norm = nn.Linear(features, width), nn.RMSNorm(width, eps=eps)
        self.box, self.box_norm = nn.Linear(BOX, width), nn.RMSNorm(width, eps=eps)
        self.image = nn.Embedding(images, width)

    @torch.no_grad()
    def start_with_content(self) -> None:
        """Start with tokens that differ by what their cells show: the content four times as large, the terms that all
        tokens share a tenth. As published, the content is a quarter of a token's variance; an encoder that reads the
        tokens can tell the terms apart, a norm in front of a frozen cross-attention cannot."""
        self.project_norm.weight.fill_(4.0)
        self.box_norm.weight.fill_(0.1)
        self.image.weight.mul_(0.1)

    def forward(self, grid: Tensor, table: Tensor, size: tuple[int, int] | None = None, images: int = 1) -> Tensor:
        """Visual tokens [B, images * side * side, D].

        Args:
            grid: [B, images * rows * columns, C], the cells of each image row by row, image after image.
            table: [V, D], the T5's token table.
            size: (rows, columns) of each grid; None = square.
            images: images per example.

        Raises:
            ValueError: the cells do not fill the grids, or there are more images than the embedding has.
        """
        count = grid.shape[1] // images
        rows, columns = size or (round(count**0.5), round(count**0.5))
        if rows * columns * images != grid.shape[1] or images > self.image.num_embeddings:
            raise ValueError(f"{grid.shape[1]} cells do not fill {images} grids of {rows} x {columns}")
        cells = grid.unflatten(1, (images, rows, columns))
        if rows > self.side or columns > self.side:
            # Windows overlap where the side does not divide the grid (7 x 7 to 6 x 6). Each image is pooled alone.
            maps = cells.flatten(0, 1).permute(0, 3, 1, 2)
            pooled = F.adaptive_max_pool2d(maps, (min(rows, self.side), min(columns, self.side)))
            cells = pooled.permute(0, 2, 3, 1).unflatten(0, (-1, images))
        cells = cells.flatten(2, 3)  # [B, images, cells, C]
        order = table.detach().flip(0)[: cells.shape[2]]  # the order starts anew in each image
        box = self.box_norm(self.box(cells.new_zeros(BOX)))
        number = self.image.weight[:images, None]
        return (self.project_norm(self.project(cells)) + box + number + order).flatten(1, 2)
