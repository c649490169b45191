"""Pairs of images as one: the cells of both, each encoded at its full size, stand side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from vlkit.adapters.base import Encoded


class Together:
    """Several encoded images as fusion and classifier read one image.

    Cells stand side by side, so a position code tells which image a cell is of; pooled embeddings are concatenated.
    Tokens of a tower without a grid have no position codes: of these the pooled embeddings alone keep the order.

    Args:
        image: P * I encoded images, example after example.
        images: I, images per example.
    """

    def __init__(self, image: Encoded, images: int) -> None:
        self._image, self._images = image, images

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the cells of all images of an example; None = tokens without places."""
        grid = self._image.grid
        return grid and (grid[0], self._images * grid[1])

    @property
    def tokens(self) -> Tensor:
        """[P, I * L, D]: the tokens that are no cells, image after image, then the cells of the joined grid."""
        return self._beside(self._image.tokens)

    @property
    def joint(self) -> Tensor | None:
        """As :attr:`tokens`, in the joint space [P, I * L, J]."""
        joint = self._image.joint
        return joint if joint is None else self._beside(joint)

    @property
    def pooled(self) -> Tensor:
        """[P, I * out_dim]."""
        return self._image.pooled.unflatten(0, (-1, self._images)).flatten(1)

    def _beside(self, tokens: Tensor) -> Tensor:
        apart = tokens.unflatten(0, (-1, self._images))  # [P, I, L, D]
        if self._image.grid is None:
            return apart.flatten(1, 2)
        rows, columns = self._image.grid
        others, cells = apart.split([apart.shape[2] - rows * columns, rows * columns], dim=2)
        beside = cells.unflatten(2, (rows, columns)).transpose(1, 2).flatten(1, 3)
        return torch.cat([others.flatten(1, 2), beside], dim=1)


def together(image: Encoded, images: int) -> Encoded | Together:
    """P * I encoded images as those of P examples."""
    return image if images == 1 else Together(image, images)
