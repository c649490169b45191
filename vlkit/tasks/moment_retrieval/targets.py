"""What the heads should say: targets of points and of clips, from annotations (R2-Tuning, arXiv:2404.00801).

Three kinds of annotation: moments (windows in seconds, perhaps with scores of annotators), TVSum (20 scores of 1..5
for each clip) and YouTube Highlights (match -1, 0 or 1 for each clip).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vlkit.data.sources.moment_lines import CLIP_SECONDS

Annotation = Literal["moments", "tvsum", "youtube"]
RADIUS = 1.5
"""A point belongs to a moment if it lies within this many strides of the moment's centre."""
SAME_LENGTH = 1e-3
"""Moments whose lengths differ by less, in clips, count as equally long."""
HIGHEST = 12.0
"""Largest sum of the three annotators' scores of a clip."""


class PointTargets(NamedTuple):
    """Targets of N points."""

    classes: Tensor
    """[B, N] bool, True = the point belongs to a moment."""
    offsets: Tensor
    """[B, N, 2], in strides; meaningless where no moment exists."""


def point_targets(points: Tensor, windows: Tensor, radius: float = RADIUS) -> PointTargets:
    """Assign moments to points.

    A point p of stride d is positive for a moment (s, e) with centre c if ``max(c - r d, s) <= p <= min(c + r d, e)``
    and ``max(p - s, e - p)`` lies in the range of its level. Of several moments the shortest counts; of equally short
    ones the first.

    Args:
        points: [N, 4], see :func:`vlkit.tasks.moment_retrieval.head.points_of`.
        windows: [B, W, 2] in clips, padded with infinity.
        radius: r.
    """
    place, low, high, stride = (column.unsqueeze(1) for column in points.unbind(1))  # [N, 1]
    real = windows.isfinite().all(2)  # [B, W]
    # Moments that are not real become empty ones at 0 and are masked below: inf - inf would be NaN.
    start, end = windows.masked_fill(~real.unsqueeze(2), 0.0).unsqueeze(1).unbind(3)  # [B, 1, W]
    centre = (start + end) / 2
    inside = (place >= torch.maximum(centre - radius * stride, start)) & (
        place <= torch.minimum(centre + radius * stride, end)
    )
    reach = torch.maximum(place - start, end - place)
    positive = inside & (reach >= low) & (reach <= high) & real.unsqueeze(1)  # [B, N, W]
    lengths = (end - start).expand_as(positive).masked_fill(~positive, math.inf)
    shortest = lengths.min(dim=2, keepdim=True).values
    chosen = (lengths <= shortest + SAME_LENGTH).to(torch.uint8).argmax(dim=2, keepdim=True)
    offsets = torch.stack([(place - start) / stride, (end - place) / stride], dim=3)  # [B, N, W, 2]
    offsets = offsets.gather(2, chosen.unsqueeze(3).expand(-1, -1, -1, 2)).squeeze(2)
    return PointTargets(positive.any(2), offsets)


def repaired(windows: Sequence[Sequence[float]], clips: int, fps: float) -> tuple[list[tuple[float, float]], int]:
    """Make windows fit for training: inside the video, start before end, at least one clip long.

    Args:
        windows: (start, end) in seconds.
        clips: T.
        fps: clips per second.

    Returns:
        The windows, and how many of them were changed.
    """
    stop, least = clips / fps, min(1.0, clips) / fps
    found, changed = [], 0
    for start, end in windows:
        fixed = sorted(min(max(float(edge), 0.0), stop) for edge in (start, end))
        if fixed[1] - fixed[0] < least:
            begin = min(max(sum(fixed) / 2 - least / 2, 0.0), stop - least)
            fixed = [begin, begin + least]
        changed += fixed != [start, end]
        found.append((fixed[0], fixed[1]))
    return found, changed


def saliency_of(record: Mapping[str, Any], clips: int, fps: float) -> tuple[Tensor, Annotation]:
    """Saliency of each clip in 0..1, float32 [T], and the kind of the record's annotation.

    Moments: the sum of three scores / 12 at the listed clips (which are of two seconds, whatever ``fps`` is), or 1
    inside the windows; TVSum: (sum of 20 scores - 20) / 80; YouTube Highlights: (match + 1) / 2. Annotations may be
    shorter or longer than the video.
    """
    values = torch.zeros(clips)
    if "scores" in record:
        found = torch.tensor([(sum(scores) - len(scores)) / (4 * len(scores)) for scores in record["scores"]])
        values[: len(found)] = found[:clips]
        return values, "tvsum"
    if "match" in record:
        found = (torch.tensor(record["match"], dtype=torch.float32) + 1) / 2
        values[: len(found)] = found[:clips]
        return values, "youtube"
    if record.get("clip_ids") is not None:
        per_label = fps * CLIP_SECONDS
        for label, scores in zip(record["clip_ids"], record["saliency"], strict=True):
            first = math.floor(label * per_label + 1e-6)
            values[first : max(first + 1, math.floor((label + 1) * per_label + 1e-6))] = sum(scores) / HIGHEST
        return values, "moments"
    for start, end in repaired(record.get("windows") or [], clips, fps)[0]:
        values[math.ceil(start * fps - 1e-6) : math.ceil(end * fps - 1e-6)] = 1.0
    return values, "moments"


def positive_clips(saliency: Tensor, annotation: Annotation) -> list[int]:
    """Clips that may be the positive one: saliency > 0 (moments), > the lower median (TVSum), > 0.5 (YouTube)."""
    least = {"moments": 0.0, "youtube": 0.5}.get(annotation)
    least = float(saliency.median()) if least is None else least
    return (saliency > least).nonzero().flatten().tolist()


def draw_positive(saliency: Tensor, annotation: Annotation) -> int:
    """A positive clip, drawn by Python's global generator, which the loader seeds for each epoch and example; -1 = the
    video has none.
    """
    clips = positive_clips(saliency, annotation)
    return random.choice(clips) if clips else -1
