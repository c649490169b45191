"""Heads: from image features to class scores.

``f`` is the pooled feature of an image with unit norm, ``w_c`` the unit embedding of the prompts of class c.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkit.errors import UserError
from vlkit.tasks.two_tower import MAX_LOGIT_SCALE


@dataclass
class ClassifierOptions:
    """Base of the heads' options.

    Attributes:
        reads_prompts: needs a base with a joint space of images and texts.
    """

    kind: str
    reads_prompts: ClassVar[bool] = True

    @property
    def closed_form(self) -> bool:
        """Whether the head is computed from the features of the training images, without a training step."""
        return False


@dataclass
class ZeroshotOptions(ClassifierOptions):
    """Compare images with class prompts, which stay fixed; with adapter kind linear nothing trains."""

    kind: Literal["zeroshot"] = "zeroshot"


@dataclass
class TextOptions(ClassifierOptions):
    """Compare images with one vector per class, which starts as the embedding of the class prompts and trains."""

    kind: Literal["text"] = "text"


@dataclass
class LinearHeadOptions(ClassifierOptions):
    """A linear layer that starts at zero and knows no class names."""

    kind: Literal["linear"] = "linear"
    reads_prompts: ClassVar[bool] = False


@dataclass
class CacheOptions(ClassifierOptions):
    """Tip-Adapter: class prompts, and a vote of similar training images."""

    kind: Literal["cache"] = "cache"
    finetune: bool = False
    """Train the features of the training images (Tip-Adapter-F); false: nothing trains."""
    alpha: float | None = None
    """Weight of the vote; default: chosen on the validation split (1 without one)."""
    beta: float | None = None
    """Sharpness of the vote: a training image counts exp(-beta (1 - cosine)); default: chosen on the validation split
    (5.5 without one)."""
    views: int = 1
    """Random crops of each training image whose features are averaged (10 in the paper); 1 = the image itself."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"--head.{name} {value}: must be at least 0, and finite")
        if self.views < 1:
            raise UserError(f"--head.views {self.views}: must be at least 1")

    @property
    def closed_form(self) -> bool:
        return not self.finetune


@dataclass
class RidgeOptions(ClassifierOptions):
    """Ridge regression on the features of the frozen base, solved in closed form in seconds."""

    kind: Literal["ridge"] = "ridge"
    penalty: float | None = None
    """Weight of the squared weights; default: the one with the best leave-one-out accuracy."""
    reads_prompts: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.penalty is not None and not 0 < self.penalty < math.inf:
            raise UserError(f"--head.penalty {self.penalty}: must be above 0, and finite")

    @property
    def closed_form(self) -> bool:
        return True


CLASSIFIERS: dict[str, type[ClassifierOptions]] = {
    "text": TextOptions,
    "zeroshot": ZeroshotOptions,
    "linear": LinearHeadOptions,
    "cache": CacheOptions,
    "ridge": RidgeOptions,
}
"""Name for ``--head.kind`` -> its options."""


class PromptHead(nn.Module):
    """``scale * f . w_c``: class prompts, fixed or trained.

    Args:
        weights: [C, E] unit rows.
        log_scale: log of the factor on the cosine; trains, at most log(100).
        trains: whether the class vectors train.
    """

    weights: Tensor

    def __init__(self, weights: Tensor, log_scale: float, trains: bool) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(float(log_scale)))
        if trains:
            self.weights = nn.Parameter(weights.clone())
        else:
            self.register_buffer("weights", weights.clone())

    def forward(self, features: Tensor) -> Tensor:
        """[B, E] -> scores [B, C]."""
        scale = self.log_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        return scale * unit(features) @ unit(self.weights).T


class LinearHead(nn.Module):
    """A linear layer on features of norm sqrt(E), so that one learning rate suits any width."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.layer, self.factor = nn.Linear(width, classes), math.sqrt(width)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[B, E] -> scores [B, C]."""
        return self.layer(unit(features) * self.factor)


class RidgeHead(nn.Module):
    """``scale * (W f + b)`` in closed form (:func:`vlkit.tasks.classification.closed_form.solve_ridge`)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(classes, width)), nn.Parameter(torch.zeros(classes))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """[B, E] -> scores [B, C]."""
        return self.log_scale.exp() * F.linear(unit(features), self.weight, self.bias)


class CacheHead(nn.Module):
    """Tip-Adapter (ECCV 2022): ``scale * f . w_c + alpha * sum over images i of class c of exp(-beta (1 - f . k_i))``.

    Args:
        weights: [C, E] unit rows.
        log_scale: log of the factor on the cosine, as in the base; fixed.
        count: number of training images N.
        alpha, beta: see :class:`CacheOptions`.
    """

    weights: Tensor
    owners: Tensor
    alpha: Tensor
    beta: Tensor
    scale: Tensor

    def __init__(self, weights: Tensor, log_scale: float, count: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.zeros(count, weights.shape[1]))
        self.register_buffer("owners", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("weights", weights.clone())
        for name, value in (("alpha", alpha), ("beta", beta), ("scale", math.exp(min(log_scale, MAX_LOGIT_SCALE)))):
            self.register_buffer(name, torch.tensor(float(value)))

    @torch.no_grad()
    def fill(self, features: Tensor, owners: Tensor) -> None:
        """Store the training images: features [N, E] (any norm) and their classes, int64 [N]."""
        self.keys.copy_(unit(features))
        self.owners.copy_(owners)

    def parts(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of the prompts [B, C], and cosines with the training images [B, N]."""
        f = unit(features)
        return self.scale * f @ self.weights.T, f @ self.keys.T.to(f.dtype)

    def mixed(self, prompts: Tensor, cosines: Tensor, alpha: Tensor | float, beta: Tensor | float) -> Tensor:
        """Scores [B, C] from :meth:`parts`, for any alpha and beta."""
        votes = torch.exp(beta * (cosines.float() - 1))
        return prompts.float().index_add(1, self.owners, votes * alpha)

    def forward(self, features: Tensor) -> Tensor:
        """[B, E] -> scores [B, C]."""
        return self.mixed(*self.parts(features), self.alpha, self.beta)


def unit(x: Tensor) -> Tensor:
    """Rows with norm 1."""
    return F.normalize(x, dim=-1)


def make_head(
    options: ClassifierOptions, width: int, classes: int, weights: Tensor | None, log_scale: float, count: int
) -> nn.Module:
    """The head's module.

    Args:
        options: one of :data:`CLASSIFIERS`.
        width: E.
        classes: C.
        weights: class vectors [C, E]; None = zeros (they are loaded later).
        log_scale: of the base.
        count: number of training images.
    """
    weights = torch.zeros(classes, width) if weights is None else weights
    if isinstance(options, CacheOptions):
        alpha, beta = (1.0 if options.alpha is None else options.alpha), (5.5 if options.beta is None else options.beta)
        return CacheHead(weights, log_scale, count, alpha, beta)
    if isinstance(options, RidgeOptions):
        return RidgeHead(width, classes)
    if isinstance(options, LinearHeadOptions):
        return LinearHead(width, classes)
    return PromptHead(weights, log_scale, trains=isinstance(cast(object, options), TextOptions))
