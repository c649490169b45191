"""Heads that are computed from features without a training step: ridge regression, and Tip-Adapter's search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkit.tasks.classification.heads import CacheHead, CacheOptions, RidgeHead, unit
from vlkit.tasks.ridge import RidgePath

PENALTIES = tuple(10 ** (k / 2) for k in range(-8, 5))
"""Candidates for the ridge penalty, times the mean eigenvalue of the features' scatter matrix."""
LOG_SCALES = torch.arange(-2, 7.01, 0.1, dtype=torch.float64)
"""Candidates for the log of the factor that turns ridge scores into logits."""
ALPHA_SPAN, BETA_SPAN = (0.1, 3.0, 20), (0.1, 7.0, 200)
"""Published grids of Tip-Adapter: (lowest, end, steps)."""
LARGE = 10**7
"""Cosines (validation images x training images) above which a tenth of the values of beta is tried."""
ROWS = 256


@dataclass(frozen=True)
class Ridge:
    """A solution of :func:`solve_ridge`.

    Attributes:
        weight: [C, E] float64.
        bias: [C] float64.
        log_scale: log of the factor on the scores with the best leave-one-out likelihood.
        penalty: weight of the squared weights.
        left_out: leave-one-out scores of the training images, [N, C] float64, before the factor.
    """

    weight: Tensor
    bias: Tensor
    log_scale: float
    penalty: float
    left_out: Tensor


def solve_ridge(features: Tensor, labels: Tensor, classes: int, penalty: float | None = None) -> Ridge:
    """Ridge regression of one-hot targets on unit features, with a bias that is not penalised.

    Minimises ``sum_i |W f_i + b - y_i|^2 + penalty |W|^2``. Every training image is scored by the solution without it
    (exact, from one singular value decomposition); these scores choose the penalty by accuracy (of equals the larger)
    and then the factor that makes them probabilities.

    Args:
        features: [N, E], any norm above 0.
        labels: int64 [N].
        classes: C.
        penalty: above 0; None = the best of :data:`PENALTIES`.
    """
    f, y = unit(features.double()), F.one_hot(labels, classes).double()
    path = RidgePath(f, y)
    candidates = [penalty] if penalty is not None else [path.eigenvalue * share for share in reversed(PENALTIES)]
    best: tuple[float, float, Tensor] | None = None
    for candidate in candidates:
        left_out = path.left_out(candidate)
        accuracy = float((left_out.argmax(1) == labels).double().mean())
        if best is None or accuracy > best[0]:
            best = accuracy, candidate, left_out
    assert best is not None  # there is at least one candidate
    _, chosen, left_out = best
    return Ridge(*path.solution(chosen), _best_scale(left_out, labels), chosen, left_out)


def _best_scale(scores: Tensor, labels: Tensor) -> float:
    losses = [float(F.cross_entropy(scores * value.exp(), labels)) for value in LOG_SCALES]
    return float(LOG_SCALES[losses.index(min(losses))])


@torch.no_grad()
def fill_ridge(head: RidgeHead, solution: Ridge) -> None:
    """Write a solution into the head."""
    head.weight.copy_(solution.weight)
    head.bias.copy_(solution.bias)
    head.log_scale.fill_(solution.log_scale)


@torch.no_grad()
def search_cache(head: CacheHead, options: CacheOptions, features: Tensor, labels: Tensor) -> tuple[float, float]:
    """Choose alpha and beta by accuracy on validation images (values that the options give stay), and set them.

    Args:
        head: with its training images.
        options: of the head.
        features: [V, E] of validation images.
        labels: int64 [V].

    Returns:
        alpha and beta.
    """
    steps = BETA_SPAN[2] if len(features) * len(head.keys) <= LARGE else BETA_SPAN[2] // 10
    betas = _grid(*BETA_SPAN[:2], steps) if options.beta is None else [options.beta]
    alphas = _grid(*ALPHA_SPAN) if options.alpha is None else [options.alpha]
    right = torch.zeros(len(betas), len(alphas), dtype=torch.int64)
    device = head.keys.device
    for rows, wanted in zip(features.split(ROWS), labels.split(ROWS), strict=True):
        prompts, cosines = head.parts(rows.to(device))
        for i, beta in enumerate(betas):
            votes = head.mixed(torch.zeros_like(prompts), cosines, 1.0, beta)
            for j, alpha in enumerate(alphas):
                right[i, j] += int(((prompts + alpha * votes).argmax(1).cpu() == wanted).sum())
    i, j = divmod(int(right.argmax()), len(alphas))  # of equals the first, as in the published search
    head.beta.fill_(betas[i])
    head.alpha.fill_(alphas[j])
    return alphas[j], betas[i]


def _grid(low: float, end: float, steps: int) -> list[float]:
    return [low + k * (end - low) / steps for k in range(steps)]
