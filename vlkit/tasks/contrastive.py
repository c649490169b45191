"""Contrastive losses over image-text pairs, on one or several processes.

All losses are group-aware: pairs that share a group (two captions of one image) are not each other's negatives. All
take :class:`Pairs`, whose ``all_*`` fields hold the pairs of every process; the mean of the processes' losses is the
loss of the one large batch, and the same holds for the gradient.

With W processes, InfoNCE and SigLIP compare the own B pairs with those of one process after another, and compute each
[B, B] block again in backward: memory does not grow to [B, W * B].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from vlkit.data.video.frame_batch import Frames
from vlkit.engine.distributed import gathers
from vlkit.errors import UserError


@dataclass(frozen=True)
class Pairs:
    """A batch of embedded pairs; row i of ``images`` belongs to row i of ``texts``.

    Attributes:
        images, texts: [B, E] float, unit norm, of this process.
        groups: [B] int64; equal numbers mark pairs that describe the same image.
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
        """[B, W * B] bool, True at each row's matching column."""
        columns = torch.arange(len(self.all_texts), device=self.images.device)
        rows = torch.arange(len(self.images), device=self.images.device) + self.offset
        return rows.unsqueeze(1) == columns

    @property
    def same_group(self) -> Tensor:
        """[B, W * B] bool, True where row and column describe the same image (the partner included)."""
        return self.groups.unsqueeze(1) == self.all_groups


def gather_pairs(images: Tensor, texts: Tensor, groups: Tensor, fabric: Any = None) -> Pairs:
    """Gather the pairs of all processes; gradients flow back to every process.

    Args:
        images: [B, E].
        texts: [B, E].
        groups: [B] int64.
        fabric: a ``lightning_fabric.Fabric``; None or one process: nothing is gathered. Every process needs the same B.
    """
    if not gathers(fabric):
        return Pairs(images, texts, groups, images, texts, groups, 0)
    everywhere = fabric.all_gather({"images": images, "texts": texts}, sync_grads=True)
    flat = {name: tensor.flatten(0, 1) for name, tensor in everywhere.items()}
    all_groups = fabric.all_gather(groups).flatten()
    return Pairs(images, texts, groups, flat["images"], flat["texts"], all_groups, fabric.global_rank * len(images))


def mean_over_blocks(
    loss: Callable[[Pairs, Tensor, Tensor], Tensor], pairs: Pairs, scale: Tensor, bias: Tensor, size: int, fabric: Any
) -> Tensor:
    """``loss(pairs, scale, bias)`` as the mean over blocks of ``size`` rows; 0, or no divisor of B: one block.

    Two processes that hold a block each, and one process with two blocks, get the same gradients bit for bit: views
    sum the gradient of each block by itself, and a sum of two does not depend on their order. With more processes, the
    order of the sums is that of the all-reduce.

    Args:
        loss: a loss of this module.
        pairs: the batch.
        scale, bias: scalars, the same on all processes.
        size: rows per block.
        fabric: as for :func:`gather_pairs`.
    """
    size = size if size > 0 and len(pairs.images) % size == 0 else len(pairs.images)
    if gathers(fabric):  # in backward, average here and not behind the exponential that made the scale
        scale = fabric.all_gather(scale, sync_grads=True).mean(0)
    sides = [pairs.images, pairs.texts, pairs.groups]
    rows = zip(*(side.view_as(side).split(size) for side in sides), strict=True)
    columns = pairs.all_images.view_as(pairs.all_images), pairs.all_texts.view_as(pairs.all_texts)
    losses = []
    for place, (images, texts, groups) in enumerate(rows):
        all_images, all_texts = (side.view_as(side) for side in columns)
        block = replace(pairs, images=images, texts=texts, groups=groups, offset=pairs.offset + place * size)
        block = replace(block, all_images=all_images, all_texts=all_texts)
        losses.append(loss(block, scale.view_as(scale), bias.view_as(bias)))
    return cast(Tensor, sum(losses)) / len(losses)


def info_nce(pairs: Pairs, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE (CLIP): cross-entropy of each row's partner among all pairs, both directions, averaged.

    Args:
        pairs: the batch.
        logit_scale: scalar, the factor on the cosine (already exponentiated).

    Returns:
        Scalar. Columns of the row's own group other than its partner are left out of the softmax.
    """
    if len(pairs.all_images) > len(pairs.images):
        to_texts = _partner_loss(pairs, pairs.images, pairs.all_texts, logit_scale)
        return (to_texts + _partner_loss(pairs, pairs.texts, pairs.all_images, logit_scale)) / 2
    excluded = pairs.same_group & ~pairs.positives
    target = torch.arange(len(pairs.images), device=pairs.images.device)
    to_text = (logit_scale * pairs.images @ pairs.all_texts.T).masked_fill(excluded, -torch.inf)
    to_image = (logit_scale * pairs.texts @ pairs.all_images.T).masked_fill(excluded, -torch.inf)
    return (F.cross_entropy(to_text, target) + F.cross_entropy(to_image, target)) / 2


def _partner_loss(pairs: Pairs, rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of each row's partner among all columns, from one [B, B] block after another."""

    def log_sum(rows: Tensor, block: Tensor, scale: Tensor, groups: Tensor, partners: bool) -> Tensor:
        excluded = pairs.groups.unsqueeze(1) == groups
        if partners:
            excluded = excluded & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        return (scale * rows @ block.T).masked_fill(excluded, -torch.inf).logsumexp(1)

    size = len(rows)
    sums = [
        recomputed(log_sum, rows, block, scale, groups, place * size == pairs.offset, use_reentrant=False)
        for place, (block, groups) in enumerate(zip(columns.split(size), pairs.all_groups.split(size), strict=True))
    ]
    partner = scale * (rows * columns[pairs.offset : pairs.offset + size]).sum(1)
    return (torch.stack(cast(list[Tensor], sums)).logsumexp(0) - partner).mean()


def siglip(pairs: Pairs, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Pairwise sigmoid loss (SigLIP): every image-text pair is a yes/no question; sum over pairs / batch size.

    Args:
        pairs: the batch; pairs of one group count as positives.
        logit_scale: scalar, already exponentiated.
        logit_bias: scalar.
    """

    def block_loss(texts: Tensor, groups: Tensor) -> Tensor:
        logits = logit_scale * pairs.images @ texts.T + logit_bias
        signs = (pairs.groups.unsqueeze(1) == groups).to(logits.dtype) * 2 - 1
        return -F.logsigmoid(signs * logits).sum()

    size = len(pairs.images)
    if len(pairs.all_texts) == size:
        return block_loss(pairs.texts, pairs.groups) / size
    blocks = zip(pairs.all_texts.split(size), pairs.all_groups.split(size), strict=True)
    return cast(Tensor, sum(recomputed(block_loss, *block, use_reentrant=False) for block in blocks)) / size


def triplet(pairs: Pairs, margin: float = 0.2, hardest: bool = True) -> Tensor:
    """Bidirectional hinge ranking loss (VSE++ / VSE-infinity), summed over the batch.

    Args:
        pairs: the batch; columns of the row's own group are not negatives.
        margin: how far a negative's cosine must stay below the partner's.
        hardest: only the hardest negative of each row counts; else all of them.
    """
    to_text = pairs.images @ pairs.all_texts.T
    to_image = pairs.texts @ pairs.all_images.T
    partner = (pairs.images * pairs.texts).sum(1, keepdim=True)
    costs = [F.relu(margin + s - partner).masked_fill(pairs.same_group, 0) for s in (to_text, to_image)]
    # A sum over the batch: the mean of the processes' losses must be the sum over all of them.
    world = len(pairs.all_images) // len(pairs.images)
    to_texts, to_images = (cost.amax(1).sum() if hardest else cost.sum() for cost in costs)
    return world * (to_texts + to_images)


def symmetric_cross_entropy(logits: Tensor) -> Tensor:
    """Mean of the row-wise and the column-wise cross-entropy of [B, B] logits with partners on the diagonal."""
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def require_negatives(batch_size: int, groups: int) -> None:
    """Refuse a run without negatives (the other examples of the batch): its loss would be 0 in every step.

    Args:
        batch_size: examples per batch, all processes together; accumulated batches do not see each other.
        groups: number of distinct images or videos in the training data.

    Raises:
        UserError: ``batch_size`` or ``groups`` is less than 2.
    """
    if groups < 2:
        raise UserError(
            f"a contrastive batch of {batch_size} has no negatives: the training split has {groups} image or video; "
            "add others to it"
        )
    if batch_size < 2:
        raise UserError(
            f"--batch_size {batch_size}: a contrastive batch of {batch_size} has no negatives, so nothing is learned; "
            "give 2 or more (--accumulate adds none)"
        )


def example_losses(
    loss_of: Callable[..., Any], forward: Callable[..., tuple[Tensor, ...]], batch: Any
) -> Iterator[Tensor]:
    """Split a batch's contrastive loss into one scalar per example; their gradients sum to that of the batch's loss.

    The scalar of an example runs the model on that example alone; the embeddings of all others are constants. Its
    gradient is that of this example in the batch, negatives included, at the memory of one example.

    Args:
        loss_of: see :data:`vlkit.engine.run.LossOf`; calls ``forward`` once, with the batch's examples.
        forward: inputs -> tensors; those with dimensions are embeddings [B, ...]; scalars (a logit scale) belong
            to the batch and count as constants. Options for running a large batch are left out.
        batch: a batch for ``loss_of``.
    """
    examples: list[tuple[Any, ...]] = []
    leaves: tuple[Tensor, ...] = ()

    def remember(*inputs: Any, **_: Any) -> tuple[Tensor, ...]:
        nonlocal leaves
        examples.extend(zip(*map(_one_by_one, inputs), strict=True))
        with torch.no_grad():
            columns = zip(*(forward(*example) for example in examples), strict=True)
            whole = [torch.cat(column) if column[0].dim() else column[0] for column in columns]
        leaves = tuple(tensor.detach().requires_grad_() for tensor in whole)
        return leaves

    loss = loss_of(remember, batch, 0.0)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    for row, example in enumerate(examples):
        terms = (
            (output * gradient[row : row + 1]).sum()
            for output, gradient in zip(forward(*example), gradients, strict=True)
            if gradient is not None and output.dim()
        )
        yield cast(Tensor, sum(terms))


def _one_by_one(inputs: Any) -> Sequence[Any]:
    return inputs.videos() if isinstance(inputs, Frames) else inputs.split(1)
