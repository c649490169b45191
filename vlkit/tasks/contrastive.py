"""Contrastive losses over image-text pairs, on one process or many, whole or in chunks.

All losses are group-aware: pairs that share a group (two captions of one picture) are not each other's negatives. All
take :class:`Pairs`, whose ``all_*`` fields hold the pairs of every process; the mean of the processes' losses is the
loss of the one large batch, and so is its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """A batch of embedded pairs; row i of ``images`` belongs to row i of ``texts``.

    Attributes:
        images, texts: [B, E] float, unit norm, of this process.
        groups: [B] int64; equal numbers mark pairs that describe the same picture.
        all_images, all_texts, all_groups: the same of all processes in rank order, [W * B, ...].
        offset: row of this process's first pair in the ``all_*`` tensors.
    """

    images: Tensor
    texts: Tensor
    groups: Tensor
    all_images: Tensor
    all_texts: Tensor
    all_groups: Tensor
    offset: int

    @property
    def positives(self) -> Tensor:
        """[B, W * B] bool, True at each row's own partner."""
        columns = torch.arange(len(self.all_texts), device=self.images.device)
        rows = torch.arange(len(self.images), device=self.images.device) + self.offset
        return rows.unsqueeze(1) == columns

    @property
    def same_group(self) -> Tensor:
        """[B, W * B] bool, True where row and column describe the same picture (the partner included)."""
        return self.groups.unsqueeze(1) == self.all_groups


def gather_pairs(images: Tensor, texts: Tensor, groups: Tensor, fabric: Any = None) -> Pairs:
    """Bring the pairs of all processes together; gradient flows back to every process.

    Args:
        images: [B, E].
        texts: [B, E].
        groups: [B] int64.
        fabric: a ``lightning_fabric.Fabric``; None or one process: nothing to gather. Every process needs the same B.
    """
    if fabric is None or fabric.world_size == 1:
        return Pairs(images, texts, groups, images, texts, groups, 0)
    everywhere = fabric.all_gather({"images": images, "texts": texts}, sync_grads=True)
    flat = {name: tensor.flatten(0, 1) for name, tensor in everywhere.items()}
    all_groups = fabric.all_gather(groups).flatten()
    return Pairs(images, texts, groups, flat["images"], flat["texts"], all_groups, fabric.global_rank * len(images))


def info_nce(pairs: Pairs, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (CLIP): cross-entropy of each row's partner among all pairs, both directions, averaged.

    Args:
        pairs: the batch.
        logit_scale: scalar, the factor on the cosine (already exponentiated).

    Returns:
        Scalar. Columns of the row's own group other than its partner are left out of the softmax.
    """
    excluded = pairs.same_group & ~pairs.positives
    target = torch.arange(len(pairs.images), device=pairs.images.device) + pairs.offset
    to_text = (logit_scale * pairs.images @ pairs.all_texts.T).masked_fill(excluded, -torch.inf)
    to_image = (logit_scale * pairs.texts @ pairs.all_images.T).masked_fill(excluded, -torch.inf)
    return (F.cross_entropy(to_text, target) + F.cross_entropy(to_image, target)) / 2


def siglip(pairs: Pairs, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Pairwise sigmoid loss (SigLIP): every image-text pair is a yes/no question; sum over pairs / batch size.

    Args:
        pairs: the batch; pairs of one group count as positives.
        logit_scale: scalar, already exponentiated.
        logit_bias: scalar.
    """
    logits = logit_scale * pairs.images @ pairs.all_texts.T + logit_bias
    signs = pairs.same_group.to(logits.dtype) * 2 - 1
    return -F.logsigmoid(signs * logits).sum() / len(pairs.images)


def triplet(pairs: Pairs, margin: float = 0.2, hardest: bool = True) -> Tensor:
    """Bidirectional hinge ranking loss (VSE++ / VSE-infinity), summed over the batch.

    Args:
        pairs: the batch; columns of the row's own group are no negatives.
        margin: how far a negative's cosine must stay below the partner's.
        hardest: only the worst negative of each row counts; else all of them.
    """
    to_text = pairs.images @ pairs.all_texts.T
    to_image = pairs.texts @ pairs.all_images.T
    partner = (pairs.images * pairs.texts).sum(1, keepdim=True)
    costs = [F.relu(margin + s - partner).masked_fill(pairs.same_group, 0) for s in (to_text, to_image)]
    # A sum over the batch: the mean of the processes' losses must be the sum over all of them.
    world = len(pairs.all_images) // len(pairs.images)
    return world * sum(cost.amax(1).sum() if hardest else cost.sum() for cost in costs)


def symmetric_cross_entropy(logits: Tensor) -> Tensor:
    """Mean of the row-wise and the column-wise cross-entropy of [B, B] logits with partners on the diagonal."""
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def backward_in_chunks(
    chunks: Sequence[Any],
    encode: Callable[[Any], tuple[Tensor, ...]],
    loss_of: Callable[..., Tensor],
    fabric: Any,
) -> Tensor:
    """Backward of a contrastive loss over a batch that does not fit in memory at once (GradCache, Gao et al. 2021).

    Pass 1 encodes the chunks without gradient; the loss and its gradient with respect to the embeddings are taken on
    the whole batch; pass 2 encodes each chunk again and sends its part of that gradient through. The gradient equals
    the one of the whole batch; random state is replayed, so dropout draws the same masks in both passes.

    Args:
        chunks: parts of the batch.
        encode: chunk -> tensors; those with a dimension are embeddings [b, ...] and are concatenated, those without
            (a logit scale) belong to the batch.
        loss_of: takes what ``encode`` returns, for the whole batch; gives a scalar.
        fabric: a ``lightning_fabric.Fabric`` (mixed precision); processes average their gradients after the step.

    Returns:
        The loss, detached.
    """
    loss, gradients, states = _of_whole_batch(chunks, encode, loss_of)
    after, start = _random_state(), 0
    for number, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
        last = number == len(chunks) - 1
        _set_random_state(state)
        outputs = encode(chunk)
        size = next(len(output) for output in outputs if output.dim())
        terms = [
            (output * (gradient[start : start + size] if output.dim() else gradient)).sum()
            for output, gradient in zip(outputs, gradients, strict=True)
            if gradient is not None and (output.dim() or last)
        ]
        fabric.backward(sum(terms))
        start += size
    _set_random_state(after)
    return loss.detach()


def example_losses(
    examples: Sequence[Any], encode: Callable[[Any], tuple[Tensor, ...]], loss_of: Callable[..., Tensor]
) -> Iterator[Tensor]:
    """A contrastive loss over a batch, taken apart: scalars whose gradients add up to that of the batch's loss.

    The one of an example runs that example alone; the embeddings of all others are constants. So each is the gradient
    that this example has in the batch, negatives and all, in the memory of one example.

    Args:
        examples: of a batch, each as ``encode`` takes it.
        encode: as for :func:`backward_in_chunks`; what has no dimension counts as a constant.
        loss_of: as for :func:`backward_in_chunks`.
    """
    _, gradients, _ = _of_whole_batch(examples, encode, loss_of)
    for row, example in enumerate(examples):
        yield sum(
            (output * gradient[row : row + 1]).sum()
            for output, gradient in zip(encode(example), gradients, strict=True)
            if gradient is not None and output.dim()
        )


def _of_whole_batch(
    chunks: Sequence[Any], encode: Callable[[Any], tuple[Tensor, ...]], loss_of: Callable[..., Tensor]
) -> tuple[Tensor, tuple[Tensor | None, ...], list[Any]]:
    """The loss, its gradient for each thing ``encode`` returns, and the random state before each chunk."""
    states, parts = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state())
            parts.append(encode(chunk))
    leaves = tuple(
        (torch.cat(column) if column[0].dim() else column[0]).detach().requires_grad_()
        for column in zip(*parts, strict=True)
    )
    loss = loss_of(*leaves)
    return loss, torch.autograd.grad(loss, leaves, allow_unused=True), states


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
