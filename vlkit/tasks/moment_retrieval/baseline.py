"""The control: fixed windows, ranked by the similarity of their frames to the query, as the video search does.

Every video is cut into windows of one length that overlap by half (:func:`vlkit.data.video.clip_frames.windows`). A
window's embedding is the mean of its frames' embeddings by the base alone; a clip's saliency is the similarity of its
own frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.data.video.clip_frames import windows as cut
from vlkit.encoders.bases import ClipBase
from vlkit.tap_cache.images import CachedImages
from vlkit.tasks.moment_retrieval.data import MomentExamples
from vlkit.tasks.moment_retrieval.evaluate import Found, metrics_of
from vlkit.tasks.moment_retrieval.windows import KEPT, post_process

LENGTHS = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0, 32.0, 60.0)
"""Lengths of windows to choose from, in seconds."""
FRAMES_AT_ONCE = 64


class FixedWindows:
    """Ranks the windows of the videos of a split.

    Args:
        base: the base, whose towers share a space.
        fabric: device and precision.
        examples: the records.
        post: see :func:`post_process`; ends are not rounded to a grid that the windows do not lie on.
        cached: the caches of these examples; their final states are pooled instead of encoding the frames again.
    """

    def __init__(
        self,
        base: ClipBase,
        fabric: Fabric,
        examples: MomentExamples,
        post: Mapping[str, Any],
        cached: CachedImages | None = None,
    ) -> None:
        self.base, self.fabric, self.examples, self.cached = base, fabric, examples, cached
        self.post = {**post, "unit": 0.0}
        device = fabric.device
        self._image, self._text = base.image.to(device).eval(), base.text.to(device).eval()
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (base.preprocess.mean, base.preprocess.std))
        self._scaled = lambda pixels: (pixels.to(device).float() / 255 - mean) / std
        frames = self._frame_embeddings()
        queries = self._texts(examples.texts)
        self._similar = [(frames[i], queries[row]) for row, i in enumerate(self._owner)]

    @torch.no_grad()
    def _frame_embeddings(self) -> list[Tensor]:
        """[T, E] of every distinct video, unit norm."""
        rows: dict[Any, int] = {}
        self._owner, found = [], []
        for index in range(len(self.examples)):
            key = tuple(self.examples.identify(index))
            if key not in rows:
                rows[key] = len(found)
                found.append(self._embed(index))
            self._owner.append(rows[key])
        return found

    def _embed(self, index: int) -> Tensor:
        images = None if self.cached is None else self.cached.images
        if images is not None and images.encoder.stop == self.base.image.depth:
            taps = cast(Any, images.complete(images.look_up([index]))).pixels.to(self.fabric.device)
            state = taps.streams(self.base.image)[-1]
            return F.normalize(self.base.image.pool(state).float(), dim=-1).cpu()
        clips, parts = self.examples.timelines[index].clips, []
        for start in range(0, clips, FRAMES_AT_ONCE):
            pixels = self._scaled(self.examples.read(index, start, min(clips, start + FRAMES_AT_ONCE)))
            with self.fabric.autocast():
                parts.append(self._image(pixels.to(next(self._image.parameters()).dtype)))
        return F.normalize(torch.cat(parts).float(), dim=-1).cpu()

    @torch.no_grad()
    def _texts(self, texts: Sequence[str]) -> Tensor:
        with self.fabric.autocast():
            parts = [
                self._text(self.fabric.to_device(self.base.text.trim(self.base.tokenize(list(texts[i : i + 256])))))
                for i in range(0, len(texts), 256)
            ]
        return F.normalize(torch.cat(parts).float(), dim=-1).cpu()

    def find(self, length: float) -> list[Found]:
        """Answers with windows of ``length`` seconds."""
        found = []
        for (frames, query), line in zip(self._similar, self.examples.timelines, strict=True):
            clips = (frames @ query).double().numpy()
            spans = cut(line.duration, length, length / 2)
            scores = []
            for start, end in spans:
                first = min(int(start * line.fps), line.clips - 1)
                stop = max(first + 1, int(np.ceil(end * line.fps - 1e-6)))
                scores.append(float(F.normalize(frames[first:stop].mean(0), dim=-1) @ query))
            table = np.array([[*span, score] for span, score in zip(spans, scores, strict=True)])
            best = table[np.argsort(-table[:, 2], kind="stable")][:KEPT]
            found.append(Found(post_process(best, line.duration, **self.post), clips, line))
        return found


def best_length(windows: FixedWindows, primary: str = "r1@0.5") -> float:
    """The length with the best metric on a split."""
    scores = {length: metrics_of(windows.examples, windows.find(length))[primary] for length in LENGTHS}
    return max(scores, key=lambda length: scores[length])


def baseline_metrics(
    base: ClipBase,
    fabric: Fabric,
    validation: MomentExamples,
    test: MomentExamples,
    post: Mapping[str, Any],
    caches: Mapping[str, CachedImages | None] | None = None,
) -> tuple[dict[str, float], float]:
    """Metrics of fixed windows on ``test``, and their length, which is chosen on ``validation``.

    ``caches`` are those of each split, by name.
    """
    known = caches or {}
    if validation.annotation != "moments" or not any(record.get("windows") for record in validation.records):
        length = LENGTHS[0]
    else:
        length = best_length(FixedWindows(base, fabric, validation, post, known.get(validation.split)))
    return metrics_of(test, FixedWindows(base, fabric, test, post, known.get(test.split)).find(length)), length
