"""Find moments and score clips with a model, and measure both. Shared by training, evaluation and serving."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from vlkit.cli.show import Console, track
from vlkit.data.records import Record
from vlkit.data.sources.moment_lines import CLIP_SECONDS
from vlkit.data.video.frame_batch import Frames
from vlkit.encoders.text_side import TextSide
from vlkit.encoders.tokenizer import warn_of_cut_texts
from vlkit.engine.distributed import my_share
from vlkit.errors import UserError
from vlkit.metrics import moment
from vlkit.tap_cache.images import CachedImages
from vlkit.tasks.moment_retrieval.data import MOST_CLIPS, MomentExamples, Timeline
from vlkit.tasks.moment_retrieval.model import MomentModel
from vlkit.tasks.moment_retrieval.windows import KEPT, post_process, saliency_scores, windows_of

ReadPart = Callable[[int, int], Frames]
"""(first clip, end) -> frames of that part of one video, or their cached taps."""


@dataclass(frozen=True)
class Found:
    """What a model says about one video and one query.

    Attributes:
        windows: float64 [n, 3]: start, end in seconds and score, best first; empty for models of highlight sets.
        saliency: float64 [T], a score for each clip.
        timeline: the clips.
    """

    windows: np.ndarray
    saliency: np.ndarray
    timeline: Timeline


class MomentFinder:
    """Answers queries one at a time, without gradient: a batch of one has no padding (as published).

    Args:
        model: the model on its device; run in eval mode, its mode is restored.
        text: the side that reads queries.
        fabric: device and precision.
        post: ``unit``, ``nms``, ``threshold`` for :func:`post_process`.
        most: longest part of a video that is searched at once, in clips; longer videos are searched in parts that
            overlap by half.
    """

    def __init__(
        self, model: MomentModel, text: TextSide, fabric: Fabric, post: Mapping[str, Any], most: int = MOST_CLIPS
    ) -> None:
        self.model, self.text, self.fabric, self.post, self.most = model, text, fabric, dict(post), most

    @torch.no_grad()
    def find(self, read: ReadPart, timeline: Timeline, queries: Sequence[Any]) -> list[Found]:
        """Answers to queries about one video, which is read once.

        Args:
            read: reads a part of the video.
            timeline: its clips.
            queries: texts, or rows of a text cache (one each).
        """
        training = self.model.training
        self.model.eval()
        try:
            windows: list[list[np.ndarray]] = [[] for _ in queries]
            saliency = np.full((len(queries), timeline.clips), -np.inf)
            for start, stop in parts_of(timeline.clips, self.most):
                frames = read(start, stop)
                for number, query in enumerate(queries):
                    ids = self.fabric.to_device(self.text.tokenize([query]) if isinstance(query, str) else query)
                    with self.fabric.autocast():
                        predicted = self.model(frames, ids)
                    scores = saliency_scores(predicted)
                    saliency[number, start:stop] = np.maximum(saliency[number, start:stop], scores)
                    if predicted.offsets is not None:
                        shift = np.array([start, start, 0.0]) / timeline.fps
                        windows[number].append(windows_of(predicted, timeline.fps) + shift)
        finally:
            self.model.train(training)
        return [
            Found(self._finished(own, timeline.duration), scores, timeline)
            for own, scores in zip(windows, saliency, strict=True)
        ]

    def _finished(self, parts: list[np.ndarray], duration: float) -> np.ndarray:
        if not parts:
            return np.zeros((0, 3))
        table = np.concatenate(parts)
        best = table[np.argsort(-table[:, 2], kind="stable")][:KEPT]
        found = post_process(best, duration, **self.post)
        if not np.isfinite(found).all():
            raise UserError("the model's windows are not finite; its weights are broken, train it again")
        return found


def parts_of(clips: int, most: int) -> list[tuple[int, int]]:
    """Parts of at most ``most`` clips that cover a video and overlap by half."""
    if clips <= most:
        return [(0, clips)]
    step = max(1, most // 2)
    starts = [*range(0, clips - most, step), clips - most]
    return [(start, start + most) for start in starts]


def find_split(finder: MomentFinder, examples: MomentExamples, cached: CachedImages | None = None) -> list[Found]:
    """Answers to every record of a split; processes share the videos.

    Args:
        finder: the model.
        examples: the records.
        cached: the caches of these examples, if there are any.

    Raises:
        UserError: a video cannot be read.
    """
    return _shared(finder.fabric, dict(answers(finder, examples, cached)), examples)


def answers(
    finder: MomentFinder,
    examples: MomentExamples,
    cached: CachedImages | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[tuple[int, Found]]:
    """Yield (row, answer) for the given rows (default: all) of this process, video after video, with a progress bar.

    Arguments and errors as :func:`find_split`.
    """
    warn_of_cut_texts(finder.text, examples.texts, f"{examples.split} queries")
    groups: dict[Any, list[int]] = {}
    for index in range(len(examples)) if rows is None else rows:
        groups.setdefault(tuple(examples.identify(index)), []).append(index)
    videos = list(groups.values())
    mine = [videos[i] for i in my_share(finder.fabric, len(videos))]
    hidden = not finder.fabric.is_global_zero or not sys.stderr.isatty()
    for own in track(mine, f"{examples.split} videos", console=Console(stderr=True), transient=True, disable=hidden):
        first = own[0]
        if cached is not None and cached.images is not None:
            whole = cast(Any, cached.images.complete(cached.images.look_up([first])))
            read: ReadPart = lambda start, stop, whole=whole: part_of(whole, start, stop)  # noqa: E731
            queries: list[Any] = [cached.texts.complete(cached.read([examples.texts[row]])) for row in own]
        else:
            read = lambda start, stop, first=first: Frames.of([examples.read(first, start, stop)])  # noqa: E731
            queries = [examples.texts[row] for row in own]
        yield from zip(own, finder.find(read, examples.timelines[first], queries), strict=True)


def part_of(frames: Frames, start: int, stop: int) -> Frames:
    """A range of the frames of one video."""
    if (start, stop) == (0, len(frames)):
        return frames
    places = torch.arange(start, stop)
    pixels = frames.pixels[start:stop] if isinstance(frames.pixels, Tensor) else frames.pixels.pick(places)
    return Frames(cast(Tensor, pixels), torch.ones(1, stop - start, dtype=torch.bool))


def _shared(fabric: Fabric, found: dict[int, Found], examples: MomentExamples) -> list[Found]:
    """The answers of all processes, in order."""
    count, most = len(examples), max(line.clips for line in examples.timelines)
    if fabric.world_size == 1:
        return [found[row] for row in range(count)]
    table = torch.zeros(count, KEPT * 3 + 1 + most, dtype=torch.float64)
    for row, one in found.items():
        table[row, 0] = len(one.windows)
        table[row, 1 : 1 + one.windows.size] = torch.from_numpy(one.windows.reshape(-1))
        table[row, 1 + KEPT * 3 :][: len(one.saliency)] = torch.from_numpy(one.saliency)
    table = cast(Tensor, fabric.all_reduce(fabric.to_device(table), reduce_op="sum")).cpu()
    answers = []
    for row, line in zip(table.numpy(), examples.timelines, strict=True):
        windows = row[1 : 1 + 3 * int(row[0])].reshape(-1, 3)
        answers.append(Found(windows, row[1 + KEPT * 3 :][: line.clips], line))
    return answers


def evaluate_split(
    finder: MomentFinder, examples: MomentExamples, cached: CachedImages | None = None
) -> dict[str, float]:
    """Metrics of a split; see :func:`metrics_of`."""
    return metrics_of(examples, find_split(finder, examples, cached))


def metrics_of(examples: MomentExamples, found: Sequence[Found]) -> dict[str, float]:
    """Metrics of answers, percent.

    Returns:
        Moments: ``r1@t`` (t = 0.3, 0.5, 0.7), ``r5@t``, ``map``, ``map@0.5``, ``map@0.75``, ``mean_iou``, and ``map``
        of short, middle and long moments as ``map_short`` and so on. Saliency annotations: ``hl_map`` and ``hl_hit1``
        (level Very Good), and ``hl_map`` of the levels Fair and Good. Highlight sets: ``hl_map``.

    Raises:
        UserError: no record has a label.
    """
    records = examples.records
    if examples.annotation == "tvsum":
        return moment.tvsum_metrics([one.saliency.tolist() for one in found], [np.array(r["scores"]) for r in records])
    if examples.annotation == "youtube":
        return moment.youtube_metrics([one.saliency.tolist() for one in found], [r["match"] for r in records])
    metrics: dict[str, float] = {}
    rows = [row for row, record in enumerate(records) if record.get("windows")]
    if rows:
        metrics |= _moment_metrics([found[row].windows for row in rows], [_target(records[row]) for row in rows])
    rows = [row for row, record in enumerate(records) if record.get("saliency")]
    if rows:
        labels = [saliency_labels(records[row], found[row].timeline) for row in rows]
        scores = [at_label_clips(found[row], len(own)) for row, own in zip(rows, labels, strict=True)]
        levels = moment.highlight_metrics(scores, labels)
        metrics |= {"hl_map": levels["very_good_map"], "hl_hit1": levels["very_good_hit@1"]}
        metrics |= {"hl_map_fair": levels["fair_map"], "hl_map_good": levels["good_map"]}
    if not metrics:
        raise UserError(
            f"{examples.dataset.root}: split {examples.split!r} has no labels; evaluate another split, or write a "
            "submission with predict.py"
        )
    return metrics


def _moment_metrics(predicted: Sequence[np.ndarray], target: Sequence[list[list[float]]]) -> dict[str, float]:
    windows = [own.tolist() for own in predicted]
    whole = moment.moment_metrics(windows, target)
    names = [f"r{k}@{t}" for k in (1, 5) for t in (0.3, 0.5, 0.7)] + ["map", "map@0.5", "map@0.75", "mean_iou"]
    metrics = {name: whole[name] for name in names}
    groups = moment.moment_metrics_by_length(windows, target)
    return metrics | {f"map_{group}": values["map"] for group, values in groups.items()}


def _target(record: Record) -> list[list[float]]:
    """Windows with their ends in order."""
    return [sorted(window) for window in record["windows"]]


def saliency_labels(record: Mapping[str, Any], timeline: Timeline) -> np.ndarray:
    """Scores of the annotators for every clip of two seconds, int [clips, annotators]; 0 where none is listed."""
    seconds = record.get("duration") or timeline.duration
    labels = np.zeros((max(1, int(seconds / CLIP_SECONDS)), len(record["saliency"][0])), dtype=np.int64)
    for clip, scores in zip(record["clip_ids"], record["saliency"], strict=True):
        if clip < len(labels):
            labels[clip] = scores
    return labels


def at_label_clips(found: Found, count: int) -> list[float]:
    """The saliency scores at ``count`` clips of two seconds: that of the model's clip in their middle."""
    middle = (np.arange(count) + 0.5) * CLIP_SECONDS
    places = np.minimum((middle * found.timeline.fps).astype(int), len(found.saliency) - 1)
    return found.saliency[places].tolist()


def submission(record: Mapping[str, Any], found: Found) -> dict[str, Any]:
    """The answer to a record in the form of a QVHighlights submission."""
    seconds = record.get("duration") or found.timeline.duration
    return {
        "qid": record.get("qid", record["id"]),
        "query": record["text"],
        "vid": record.get("vid", record["video"].rpartition(".")[0] or record["video"]),
        "pred_relevant_windows": [[round(v, 4) for v in window] for window in found.windows.tolist()],
        "pred_saliency_scores": [round(v, 4) for v in at_label_clips(found, max(1, int(seconds / CLIP_SECONDS)))],
    }
