"""From predictions to windows and saliency scores: inference and post-processing of R2-Tuning (arXiv:2404.00801)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from vlkit.errors import UserError
from vlkit.tasks.moment_retrieval.head import Predictions

Suppression = Literal["hard", "linear", "none"]
KEPT = 50
"""Windows of a query that are post-processed."""


@dataclass
class WindowOptions:
    """How windows are rounded, and how overlapping ones are suppressed."""

    unit: float | None = None
    """Round the ends of windows to multiples of this many seconds; 0 = do not round; default: that of the dataset."""
    nms: Literal["auto", "hard", "linear", "none"] = "auto"
    """Suppression of overlapping windows. hard: an overlapping window gets score 0; linear: its score is lowered by the
    overlap; auto: that of the dataset."""
    threshold: float = 0.7
    """Smallest IoU that nms hard suppresses."""

    def __post_init__(self) -> None:
        if self.unit is not None and not 0 <= self.unit < float("inf"):
            raise UserError(f"--windows.unit {self.unit}: must be 0 or more seconds")
        if not 0 < self.threshold <= 1:
            raise UserError(f"--windows.threshold {self.threshold}: must be above 0 and at most 1")


@torch.no_grad()
def windows_of(predicted: Predictions, fps: float, row: int = 0, kept: int = KEPT) -> np.ndarray:
    """The best windows of one query before post-processing, float64 [n, 3]: start, end in seconds, score; best first.

    Windows may reach outside the video.
    """
    if predicted.offsets is None:
        raise ValueError("a model without a boundary head has no windows")
    place, stride = predicted.points[:, 0], predicted.points[:, 3]
    back, on = predicted.offsets[row].unbind(1)
    ends = torch.stack([(place - back * stride) / fps, (place + on * stride) / fps], dim=1)
    scores = predicted.logits[row].sigmoid()
    real = predicted.valid[row]
    table = torch.cat([ends, scores.unsqueeze(1)], dim=1)[real].double().cpu().numpy()
    return table[np.argsort(-table[:, 2], kind="stable")][:kept]


@torch.no_grad()
def saliency_scores(predicted: Predictions, row: int = 0) -> np.ndarray:
    """Saliency of each real clip of one query, float64 [T].

    The largest class score of any level at the clip, times the cosine of clip and query. A model without a boundary
    head gives the class score alone. A level of n points reaches clip resolution by repeating each score T // n times
    and filling the rest with the last one.
    """
    clips = int(predicted.mask[row].sum())
    scores = predicted.logits[row].sigmoid()
    if predicted.offsets is None:
        return scores[:clips].double().cpu().numpy()
    strides, levels = predicted.points[:, 3], []
    for stride in strides.unique(sorted=True):
        own = scores[(strides == stride) & predicted.valid[row]]
        level = own.repeat_interleave(max(1, clips // len(own)))[:clips]
        levels.append(F.pad(level, (0, clips - len(level)), value=float(own[-1])))
    best = torch.stack(levels).amax(0)
    cosine = F.cosine_similarity(predicted.frames[row, :clips], predicted.pooled[row].unsqueeze(0), dim=-1)
    return (best * cosine).double().cpu().numpy()


def post_process(
    windows: np.ndarray | Sequence[Sequence[float]],
    duration: float,
    unit: float = 0.0,
    nms: Suppression = "hard",
    threshold: float = 0.7,
) -> np.ndarray:
    """Clamp, round and suppress windows, float64 [n, 3]; their number stays, sorted by score.

    Args:
        windows: rows of start, end (seconds) and score.
        duration: seconds; windows are clamped to it.
        unit: round both ends to multiples of this, halves to even; windows that end at the end of the video or after
            it are not rounded. 0 = do not round.
        nms: ``hard``: a window that overlaps a better one with IoU >= ``threshold`` gets score 0; ``linear``: its score
            is multiplied by 1 - IoU; ``none``.
        threshold: see ``nms``.
    """
    table: np.ndarray = np.array(windows, dtype=np.float64).reshape(-1, 3)
    before_end = table[:, 1:2] < duration
    table[:, :2] = table[:, :2].clip(0, duration)
    if unit:
        table[:, :2] = np.where(before_end, np.round(table[:, :2] / unit) * unit, table[:, :2])
    if nms != "none":
        _suppress(table, nms, threshold)
    return table[np.argsort(-table[:, 2], kind="stable")]


def _suppress(table: np.ndarray, nms: Suppression, threshold: float) -> None:
    """Suppress in place: the best of the remaining windows lowers the scores of those after it, and so on."""
    for i in range(len(table) - 1):
        best = i + int(np.argmax(table[i:, 2]))
        table[[i, best]] = table[[best, i]]
        rest = table[i + 1 :]
        iou = _iou(table[i], rest)
        rest[:, 2] = np.where(iou >= threshold, 0.0, rest[:, 2]) if nms == "hard" else rest[:, 2] * (1 - iou)


def _iou(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of a window with others [n, 3]; 0 where the union is empty."""
    overlap = np.maximum(0, np.minimum(one[1], others[:, 1]) - np.maximum(one[0], others[:, 0]))
    union = (one[1] - one[0]) + (others[:, 1] - others[:, 0]) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def resolved(options: WindowOptions, source: Any) -> dict[str, Any]:
    """``unit``, ``nms`` and ``threshold`` for :func:`post_process`.

    Args:
        options: what the user asked for.
        source: field ``source`` of the dataset, which may hold ``unit`` and ``nms``.
    """
    known = source if isinstance(source, dict) else {}
    unit = known.get("unit", 0.0) if options.unit is None else options.unit
    nms = known.get("nms", "linear") if options.nms == "auto" else options.nms
    return {"unit": float(unit or 0.0), "nms": nms, "threshold": options.threshold}
