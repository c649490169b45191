"""A closed-form start for a pair of encoders: projections into a joint space, computed without a training step.

Two unimodal encoders share no space, and random projections begin at chance. Here the joint space is the text encoder's
own: its projection keeps angles between centred texts, and ridge regression maps an image to the mean of its captions.
Recall of this start is also the control that trained methods have to beat.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from vlkit.adapters.base import Encoded
from vlkit.adapters.linear import LinearOptions
from vlkit.data.images import read_image
from vlkit.encoders.bases import ClipBase
from vlkit.number_formats import NumberFormat
from vlkit.tap_cache.embed import embed_rows
from vlkit.tap_cache.pairs import cached_pairs
from vlkit.tasks.retrieval.data import ImageTextPairs
from vlkit.tasks.retrieval.evaluate import Embedder
from vlkit.tasks.ridge import RidgePath
from vlkit.tasks.two_tower import HeadOptions, TwoTower, masked_mean

log = logging.getLogger(__name__)

PENALTIES = tuple(10 ** (k / 2) for k in range(-6, 5))
"""Candidates for the ridge penalty, times the mean eigenvalue of the image features' scatter matrix."""
JUDGED = 1000
"""Images whose leave-one-out prediction chooses the penalty."""


@dataclass(frozen=True)
class Start:
    """Affine maps of both towers' features into the joint space.

    Attributes:
        image: weight [E, D_image] and bias [E], float64.
        text: weight [E, D_text] and bias [E], float64.
        penalty: the chosen penalty.
        recall: percentage of the judged images whose leave-one-out prediction is nearest to their own captions.
    """

    image: tuple[Tensor, Tensor]
    text: tuple[Tensor, Tensor]
    penalty: float
    recall: float

    @torch.no_grad()
    def fill(self, model: TwoTower) -> None:
        """Write the maps into the projections; generalised pooling starts as the mean over tokens."""
        for head, (weight, bias) in ((model.image_head, self.image), (model.text_head, self.text)):
            assert isinstance(head.projection, nn.Linear)
            head.projection.weight.copy_(weight)
            head.projection.bias.copy_(bias)
            if head.gpo is not None:
                head.gpo.score.weight.zero_()  # equal scores for every rank


def solve(images: Tensor, texts: Tensor, owner: Tensor, width: int) -> Start:
    """Joint space and maps into it.

    Texts: centred and mapped with orthonormal columns (``width`` at least D_text; otherwise onto their ``width`` first
    principal directions). Images: ridge regression of the mean unit caption embedding, with a bias that is not
    penalised; the penalty is the best of :data:`PENALTIES` by leave-one-out recall (exact, from one singular value
    decomposition).

    Args:
        images: features [N, D_image].
        texts: features [M, D_text].
        owner: int64 [M], the image of each text; every image has one.
        width: E.
    """
    y = texts.double()
    mean = y.mean(0)
    if width >= y.shape[1]:
        basis = nn.init.orthogonal_(torch.empty(width, y.shape[1], dtype=torch.float64))
    else:
        basis = torch.linalg.svd(y - mean, full_matrices=False).Vh[:width]
    captions = F.normalize((y - mean) @ basis.T, dim=1)
    count = torch.bincount(owner, minlength=len(images)).unsqueeze(1)
    targets = torch.zeros(len(images), width, dtype=torch.float64).index_add_(0, owner, captions) / count
    path, own = RidgePath(images.double(), targets), F.normalize(targets, dim=1)[:JUDGED]
    best = (-1.0, 0.0)
    for share in reversed(PENALTIES):  # of equals the larger
        penalty = share * path.eigenvalue
        nearest = (F.normalize(path.left_out(penalty, JUDGED), dim=1) @ own.T).argmax(1)
        recall = 100 * float((nearest == torch.arange(len(own))).double().mean())
        best = max(best, (recall, penalty), key=lambda pair: pair[0])
    recall, penalty = best
    return Start(path.solution(penalty), (basis, -basis @ mean), penalty, recall)


class FrozenFeatures(nn.Module):
    """The frozen towers of a pair with the interface of :class:`~vlkit.tasks.two_tower.TwoTower`, unprojected.

    Args:
        base: a pair of encoders.
        pool: pooling of the head; ``gpo`` and ``mean`` read the mean over tokens.
    """

    def __init__(self, base: ClipBase, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.image, self.text = (
            LinearOptions().build(tower, "pooled" if pool == "base" else "tokens") for tower in (base.image, base.text)
        )

    @property
    def out_dim(self) -> int:
        """Width of an image's features."""
        return self.image.base.out_dim if self.pool == "base" else self.image.base.token_dim

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Images [B, 3, H, W], or their cached rows -> [B, D_image] float32."""
        return self._features(self.image(pixels))

    def embed_texts(self, ids: Tensor) -> Tensor:
        """Token ids [B, L] int64, or their cached rows -> [B, D_text] float32."""
        return self._features(self.text(ids))

    def _features(self, encoded: Encoded) -> Tensor:
        return (encoded.pooled if self.pool == "base" else masked_mean(encoded.tokens, encoded.mask)).float()


def closed_form_start(
    base: ClipBase,
    head: HeadOptions,
    pairs: ImageTextPairs,
    fabric: Fabric,
    cache: Path | bool = False,
    stored: NumberFormat = "bf16",
) -> Start:
    """Compute the start from the frozen features of every training image and caption.

    Call it before the adapter is built: full fine-tuning and LoRA change the base's own modules.

    Args:
        base: a pair of encoders.
        head: the head whose projections will be filled.
        pairs: the training set, without augmentation.
        fabric: device and precision.
        cache, stored: ``--cache`` and ``--cache_dtype``: the features come from a cache of the frozen outputs.
    """
    frozen = FrozenFeatures(base, head.pool).requires_grad_(False).eval()
    fabric.setup_module(frozen)
    if cache:
        rows = cached_pairs(cache, stored, pairs, frozen, base, fabric)
        images = embed_rows(rows.media, frozen.embed_images, range(len(pairs.records)), "training images")
        texts = embed_rows(rows.texts, frozen.embed_texts, range(len(pairs.captions)), "training captions")
    else:
        embedder = Embedder(frozen, base, fabric)
        images = embedder.images(pairs.records, lambda record: read_image(pairs.dataset, record), "training images")
        texts = embedder.texts(pairs.captions, "training captions")
    owner = torch.tensor([group for group, rows in enumerate(pairs.captions_of) for _ in rows])
    start = solve(images, texts, owner, head.dim or base.joint_dim or texts.shape[1])
    log.info("ridge start: penalty %.3g; leave-one-out R@1 on training images %.1f", start.penalty, start.recall)
    return start
