"""Choose after training how much of the adapter to keep, by the validation split.

On small data an adapter moves further from its base than new data bear out; a part of the way is often better (WiSE-FT,
Wortsman et al., CVPR 2022, arXiv:2109.01903). A few evaluations find it.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vlkit.adapters.mix import Mix, Trained, mixed, set_side_mix
from vlkit.engine import checkpoint
from vlkit.engine.run import Run
from vlkit.engine.state import FitResult

log = logging.getLogger(__name__)

ALPHAS = (0.75, 0.5, 0.25)
"""Shares that are tried beside the whole adapter."""


class MixChoice:
    """The start of a run, which a part of the way is measured from.

    Args:
        run: for its log.
        model: the model before training, with the weights that it starts from.

    Raises:
        UserError: the method cannot be scaled; said before training.
    """

    def __init__(self, run: Run, model: Any) -> None:
        self.run, self.core = run, checkpoint.unwrap(model)
        self._start = checkpoint.copy_trained(self.core)
        mixed(self.core, self._start, Mix(0.5))
        set_side_mix(self.core, 1.0)

    @torch.no_grad()
    def choose(self, result: FitResult, evaluate: Callable[[], Mapping[str, float]], primary: str) -> FitResult:
        """Evaluate parts of the adapter and leave the best one in the model; the whole adapter wins a tie.

        Args:
            result: of training; the model holds its weights.
            evaluate: metrics of the validation split, larger is better.
            primary: the metric that decides.

        Returns:
            The result with the chosen part (:attr:`FitResult.mix`) and its metrics.
        """
        whole, best = checkpoint.copy_trained(self.core), result
        for alpha in ALPHAS:
            self._apply(whole, alpha)
            metrics = self.run.fabric.broadcast({key: float(value) for key, value in evaluate().items()})
            self.run.log(step=result.steps, split="val", mix=alpha, **metrics)
            if metrics[primary] > best.metrics[primary]:
                best = dataclasses.replace(result, metrics=metrics, mix=alpha)
        self._apply(whole, best.mix)
        found = best.metrics[primary], result.metrics[primary]
        log.info("%g of the adapter: %s %.2f; as trained %.2f", best.mix, primary, *found)
        return best

    def _apply(self, whole: Mapping[str, Tensor], alpha: float) -> None:
        set_side_mix(self.core, 1.0)
        checkpoint.load_trained(self.core, self._start)  # tensors inside the base are moved from their start
        checkpoint.load_trained(self.core, Trained(whole, Mix(alpha)))
