"""Pipeline for moments: a video and a sentence -> when it happens, which clips show it best, and a summary."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.data.video.frame_batch import Frames
from vlkit.encoders.bases import ClipBase, TextBase
from vlkit.encoders.load import load_base
from vlkit.encoders.text_side import text_side
from vlkit.encoders.tokenizer import warn_of_cut_texts
from vlkit.engine.checkpoint import check_base, load_trained
from vlkit.engine.foreign import built_for
from vlkit.errors import UserError, listed
from vlkit.tasks.moment_retrieval.data import ClipsReader
from vlkit.tasks.moment_retrieval.evaluate import Found, MomentFinder
from vlkit.tasks.moment_retrieval.head import MomentOptions
from vlkit.tasks.moment_retrieval.model import build_model, method_options
from vlkit.tasks.moment_retrieval.summary import summary_of
from vlkit.tasks.moment_retrieval.targets import Annotation

ANYTHING = "the best moments of the video"
"""The query where the caller gives none."""


class MomentPipeline:
    """An adapted model for moments and highlights. Safe to call from several threads.

    Args:
        finder: model and device.
        reader: how videos are read.
        name: name used in messages.
        metrics: the metrics recorded in the adapter's config.
    """

    def __init__(self, finder: MomentFinder, reader: ClipsReader, name: str, metrics: dict[str, float]) -> None:
        self.finder, self.reader, self.name, self.metrics = finder, reader, name, metrics
        self._lock = threading.Lock()

    def moments(self, video: str | Path, text: str, k: int = 5) -> list[tuple[float, float, float]]:
        """The k best moments that ``text`` describes: ``model.moments("film.mp4", "a dog jumps")``.

        Returns:
            (start, end, score) with times in seconds, best first; suppressed ones (score 0) are left out.

        Raises:
            UserError: the text is blank, ``k`` is below 1, or the model was trained on highlights alone.
            vlkit.data.images.MediaError: the file is not a readable video; names it and the reason.
        """
        if k < 1:
            raise UserError(f"k={k}: must be at least 1")
        if self.finder.model.heads.boundaries is None:
            raise UserError(f"{self.name}: was trained on highlights alone and finds no moments; use .highlights")
        (found,) = self.answer(video, [text])
        return best_windows(found, k)

    def highlights(
        self, video: str | Path, text: str = ANYTHING, k: int | None = None
    ) -> list[tuple[float, float, float]]:
        """A score for each clip: how well it shows what ``text`` describes.

        Returns:
            (start, end, score) with times in seconds: every clip in order of time, or the k best, best first.

        Raises:
            UserError, vlkit.data.images.MediaError: as :meth:`moments`.
        """
        (found,) = self.answer(video, [text])
        return clip_scores(found, k)

    def summary(self, video: str | Path, seconds: float, text: str = ANYTHING) -> list[tuple[float, float]]:
        """The most salient parts of a video, at most ``seconds`` long together.

        Returns:
            (start, end) in seconds, in order of time; the whole video if it is shorter than ``seconds``.

        Raises:
            UserError, vlkit.data.images.MediaError: as :meth:`moments`.
        """
        (found,) = self.answer(video, [text])
        return summary_of(found, seconds)

    def check_annotation(self, annotation: Annotation, where: Path) -> None:
        """Refuse a dataset of moments for a model without a boundary head.

        Raises:
            UserError: it is one.
        """
        if annotation == "moments" and self.finder.model.heads.boundaries is None:
            raise UserError(f"{where}: holds moments, but {self.name} was trained on highlights alone")

    def answer(self, video: str | Path, texts: Sequence[str]) -> list[Found]:
        """Windows and saliency for several queries about one video, which is read once."""
        texts = listed(texts, "texts")
        if not texts or any(not text.strip() for text in texts):
            raise UserError("the text is blank; say what to find in the video")
        warn_of_cut_texts(self.finder.text, texts, "texts")
        line = self.reader.timeline(video)
        with self._lock:
            return self.finder.find(
                lambda start, stop: Frames.of([self.reader.read(video, line, start, stop)]), line, texts
            )


def best_windows(found: Found, k: int) -> list[tuple[float, float, float]]:
    """The k best windows (start, end, score), inside the video; suppressed and empty ones are left out.

    Post-processing rounds the ends after it clamped them (as published), so a window may end a little late there.
    """
    table = found.windows.copy()
    table[:, :2] = table[:, :2].clip(0, found.timeline.duration)
    kept = table[(table[:, 2] > 0) & (table[:, 1] > table[:, 0])]
    return [(start, end, score) for start, end, score in kept[:k].tolist()]


def clip_scores(found: Found, k: int | None = None) -> list[tuple[float, float, float]]:
    """(start, end, saliency) of every clip in order of time, or of the k best."""
    line = found.timeline
    edges = np.minimum(np.arange(line.clips + 1) / line.fps, line.duration)
    edges[-1] = line.duration
    rows = list(zip(edges[:-1].tolist(), edges[1:].tolist(), found.saliency.tolist(), strict=True))
    return rows if k is None else sorted(rows, key=lambda row: -row[2])[:k]


def open_adapter(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
    fabric: Fabric,
    base: ClipBase | None = None,
    text_base: TextBase | None = None,
) -> MomentPipeline:
    """Attach a saved adapter to its base; see :func:`vlkit.tasks.load.load`. ``text_base`` is not used."""
    base = base or load_base(config["base"]["image"]["load"])
    check_base(config, base.identity, folder)
    reading = config["preprocess"]
    with built_for(tensors, folder, base.image.model, base.text.model):
        options = dict(config["head"])
        moments = bool(options.pop("moments"))
        model = build_model(base, method_options(config["adapters"]["image"]), MomentOptions(**options), moments)
        post = {"unit": float(reading["unit"]), "nms": reading["nms"], "threshold": float(reading["threshold"])}
        if not 0 < float(reading["fps"]) < 1000 or post["nms"] not in ("hard", "linear", "none"):
            raise UserError(f"{folder}: preprocess.fps or preprocess.nms has no valid value; copy the adapter again")
        reader = ClipsReader(base.preprocess, float(reading["fps"]))
    load_trained(model, tensors, folder)
    fabric.setup_module(model.requires_grad_(False)).eval()
    finder = MomentFinder(model, text_side("clip", base), fabric, post)
    return MomentPipeline(finder, reader, folder.name, config.get("metrics", {}))
