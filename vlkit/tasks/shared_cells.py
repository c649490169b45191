"""Products of texts' tokens with the cells of the images that they share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlkit.number_formats import has_values


def products(words: Tensor, cells: Tensor, owner: Tensor | None) -> Tensor:
    """``words @ cells[owner]^T``, [B, S, V].

    On the CPU the cells are not copied for each text, which takes half the time where an image has several. On a GPU
    the host would have to wait for ``owner``.

    Args:
        words: [B, S, C], tokens of B texts.
        cells: [P, V, C], of P images.
        owner: [B] int64, the image of each text; None: P = B, in the same order.
    """
    if owner is None:
        return words @ cells.transpose(1, 2)
    if words.device.type != "cpu" or len(cells) == len(words):
        return words @ cells[owner].transpose(1, 2)
    return _Products.apply(words, cells, owner)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, words: Tensor, cells: Tensor, owner: Tensor) -> Tensor:
        ctx.save_for_backward(words, cells)
        ctx.texts = _texts_of(owner, len(cells))
        found = words.new_empty(*words.shape[:2], cells.shape[1])
        # In mixed precision the products would be of another dtype than the texts and cells, which are float32.
        with torch.autocast("cpu", enabled=False):
            for image, texts in zip(cells, ctx.texts, strict=True):
                found[texts] = words[texts] @ image.T
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        words, cells = ctx.saved_tensors
        of_words, of_cells = torch.empty_like(words), torch.empty_like(cells)
        for number, texts in enumerate(ctx.texts):
            mine = gradient[texts]
            of_words[texts] = mine @ cells[number]
            of_cells[number] = mine.flatten(0, 1).T @ words[texts].flatten(0, 1)
        return of_words, of_cells, None


def _texts_of(owner: Tensor, images: int) -> list[Tensor]:
    """The texts of each image, by number."""
    order = owner.argsort(stable=True)
    if not has_values(owner):  # a prediction of memory: any share of the texts has the same bytes in total
        return list(order.tensor_split(images))
    return list(order.split(owner.bincount(minlength=images).tolist()))
