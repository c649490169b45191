"""Records of moment and highlight sets as examples: the clips of a video, a query, and what is to be found."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor

from vlkit.cli.show import Console, track
from vlkit.data.images import MediaError, identify_file
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.data.transforms import frame_transform
from vlkit.data.video.clip_frames import duration_of
from vlkit.data.video.frame_batch import Frames
from vlkit.data.video.timed_frames import frames_at
from vlkit.encoders.bases import Preprocess
from vlkit.errors import UserError, some
from vlkit.tap_cache.rows import TapBatch
from vlkit.tasks.moment_retrieval.targets import Annotation, draw_positive, repaired, saliency_of

log = logging.getLogger(__name__)

MOST_CLIPS = 1024
"""Longest video that is trained on, and longest part of a video that is searched at once, in clips."""
LEAST_SECONDS = 5.0
"""Videos of moment sets that are shorter are not trained on (as published)."""
DEFAULT_FPS = 0.5


@dataclass(frozen=True)
class Timeline:
    """How a video is cut into clips.

    Attributes:
        clips: T.
        fps: clips per second.
        duration: seconds.
    """

    clips: int
    fps: float
    duration: float

    def times(self, start: int = 0, stop: int | None = None) -> list[float]:
        """The middle of each clip in a range, in seconds, inside the video."""
        stop = self.clips if stop is None else min(stop, self.clips)
        return [min((clip + 0.5) / self.fps, self.duration) for clip in range(start, stop)]


class ClipsReader:
    """Reads one frame per clip with a base's preprocessing.

    Args:
        preprocess: size and interpolation.
        fps: clips per second.
    """

    def __init__(self, preprocess: Preprocess, fps: float) -> None:
        self.fps, self.size, self.transform = fps, max(preprocess.size), frame_transform(preprocess)

    def timeline(self, path: str | Path, clips: int | None = None) -> Timeline:
        """The clips of a file. A video shorter than one clip has one; ``clips``: cut it into that many instead.

        Raises:
            vlkit.data.images.MediaError: the file is not a readable video.
        """
        duration = duration_of(path)
        if clips is not None:
            return Timeline(clips, clips / duration, duration)
        return Timeline(max(1, int(duration * self.fps + 0.5)), self.fps, duration)

    def read(self, path: str | Path, timeline: Timeline, start: int = 0, stop: int | None = None) -> Tensor:
        """The frames of a range of clips, [t, 3, H, W] uint8.

        Raises:
            vlkit.data.images.MediaError: the file cannot be used; names it and the reason.
        """
        frames = frames_at(path, timeline.times(start, stop), self.size)
        return torch.stack([self.transform(Image.fromarray(frame)) for frame in frames])


class MomentExample(NamedTuple):
    """One query about one video."""

    frames: Tensor | int
    """[T, 3, H, W] uint8, or the example's index."""
    text: str
    windows: Tensor
    """[W, 2] float32, in clips."""
    saliency: Tensor
    """[T] float32."""
    positive: int
    """A clip with high saliency, or -1."""
    video: int
    """Number of the video; queries about one video have the same."""


class MomentExamples:
    """The records of a split.

    Args:
        dataset: a prepared dataset of this task.
        split: which split.
        reader: how videos are read.
        training: leave out what cannot be trained on, and say so.

    Attributes:
        records: the records in use.
        annotation: their kind.
        timelines: for each record.
        videos: for each record the number of its video; records about one video have the same.
    """

    def __init__(self, dataset: Dataset, split: str, reader: ClipsReader, training: bool = False) -> None:
        self.dataset, self.split, self.reader = dataset, split, reader
        records = dataset.records(split)
        self.annotation: Annotation = annotation_of(records, f"{dataset.root}, split {split!r}")
        self._known: dict[Any, Timeline] = {}
        hidden = not sys.stderr.isatty()
        console = Console(stderr=True)
        for record in track(records, f"{split} video headers", console=console, transient=True, disable=hidden):
            self._timeline(record)
        self.records = self._usable(records) if training else records
        self.timelines = [self._timeline(record) for record in self.records]
        numbers: dict[Any, int] = {}
        self.videos = [numbers.setdefault(self._key(record), len(numbers)) for record in self.records]
        self._latest: tuple[int, Tensor] | None = None
        if training:
            self._report_repairs()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> MomentExample:
        """Example ``index`` with its frames; the positive clip is drawn on each access."""
        video = self.videos[index]
        if self._latest is None or self._latest[0] != video:  # queries about one video often follow each other
            self._latest = video, self.load([index])[0]
        return self.unopened(index)._replace(frames=self._latest[1])

    @property
    def image_count(self) -> int:
        """One video per example."""
        return len(self)

    @property
    def texts(self) -> list[str]:
        """The queries."""
        return [record["text"] for record in self.records]

    def unopened(self, index: int) -> MomentExample:
        """The example with its index in place of frames."""
        record, line = self.records[index], self.timelines[index]
        saliency, annotation = saliency_of(record, line.clips, line.fps)
        windows = repaired(record.get("windows") or [], line.clips, line.fps)[0]
        in_clips = torch.tensor(windows, dtype=torch.float32).view(-1, 2) * line.fps
        positive = draw_positive(saliency, annotation)
        return MomentExample(index, record["text"], in_clips, saliency, positive, self.videos[index])

    def identify(self, index: int) -> list[Any]:
        """A value that changes when the example's clips do; queries about one video share it."""
        line = self.timelines[index]
        return [*identify_file(self.dataset.path(self.records[index])), line.clips, line.fps]

    def load(self, indices: list[int]) -> list[Tensor]:
        """Frames of examples, [T, 3, H, W] uint8 each.

        Raises:
            UserError: a video cannot be read.
        """
        return [self.read(index) for index in indices]

    def read(self, index: int, start: int = 0, stop: int | None = None) -> Tensor:
        """Frames of a range of an example's clips, [t, 3, H, W] uint8."""
        record = self.records[index]
        with _names_record(record, self.dataset):
            return self.reader.read(self.dataset.path(record), self.timelines[index], start, stop)

    @staticmethod
    def _key(record: Record) -> tuple[str, int | None]:
        """The video, and the number of clips that its annotation cuts it into."""
        return record["video"], len(record.get("scores") or record.get("match") or ()) or None

    def _timeline(self, record: Record) -> Timeline:
        key = self._key(record)
        if key not in self._known:
            with _names_record(record, self.dataset):
                self._known[key] = self.reader.timeline(self.dataset.path(record), key[1])
        return self._known[key]

    def _usable(self, records: Sequence[Record]) -> list[Record]:
        if not any(is_labelled(record) for record in records):
            raise UserError(f"{self.dataset.root}: split {self.split!r} has no labels; train on another --data.train")
        reasons: dict[str, list[str]] = {}
        kept = []
        for record in records:
            line = self._timeline(record)
            reason = None
            if not is_labelled(record):
                reason = "have no labels"
            elif self.annotation == "moments" and line.duration < LEAST_SECONDS:
                reason = f"are shorter than {LEAST_SECONDS:g} s"
            elif line.clips > MOST_CLIPS:
                reason = f"are longer than {MOST_CLIPS} clips at {line.fps:g} clips a second (lower --fps to use them)"
            if reason:
                reasons.setdefault(reason, []).append(record["id"])
            else:
                kept.append(record)
        for reason, names in reasons.items():
            log.warning("%s: %d records %s and are left out: %s", self.split, len(names), reason, some(names))
        if not kept:
            raise UserError(f"{self.dataset.root}: no record of split {self.split!r} is left; {'; '.join(reasons)}")
        return kept

    def _report_repairs(self) -> None:
        pairs = zip(self.records, self.timelines, strict=True)
        count = sum(repaired(record.get("windows") or [], line.clips, line.fps)[1] for record, line in pairs)
        if count:
            log.info(
                "%s: %d windows were repaired (reversed, outside the video or shorter than a clip)", self.split, count
            )


class _names_record:
    """Errors about a video name its record and how to find all such errors."""

    def __init__(self, record: Record, dataset: Dataset) -> None:
        self.record, self.dataset = record, dataset

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, MediaError):
            raise UserError(
                f"{error} (record {self.record['id']!r} of {self.dataset.root}); run data_prep/check.py "
                f"{self.dataset.root} to list every bad file, and --write_clean there to leave them out"
            ) from None


def annotation_of(records: Sequence[Mapping[str, Any]], where: str) -> Annotation:
    """The kind of annotation of a split.

    Raises:
        UserError: records of several kinds.
    """
    kinds = {"tvsum" if "scores" in r else "youtube" if "match" in r else "moments" for r in records}
    if len(kinds) > 1:
        raise UserError(f"{where}: records of several kinds ({', '.join(sorted(kinds))}); prepare them separately")
    return cast(Annotation, kinds.pop())


def is_labelled(record: Mapping[str, Any]) -> bool:
    """Whether a record has moments, scores or matches."""
    return any(record.get(field) is not None for field in ("windows", "scores", "match"))


def default_fps(dataset: Dataset) -> float:
    """Clips per second that the dataset is usually cut into."""
    source = dataset.source if isinstance(dataset.source, dict) else {}
    return float(source.get("fps") or DEFAULT_FPS)


class MomentBatch(NamedTuple):
    """B queries about V <= B videos."""

    frames: Frames | TapBatch
    """Frames of the V videos, or the rows of the cache."""
    ids: Tensor | TapBatch
    """[B, L] int64, or the rows of the cache."""
    windows: Tensor
    """[B, W, 2] float32, in clips, padded with infinity."""
    saliency: Tensor
    """[B, T] float32, padded with 0."""
    positive: Tensor
    """[B] int64, -1 = none."""
    videos: Tensor
    """[B] int64 < V, the video that each query is about."""


class MomentCollate:
    """Examples of :class:`MomentExamples` -> :class:`MomentBatch`.

    Args:
        tokenize: texts -> ids [B, L], or rows of a cache.
        stack: frames of different videos (or an example's index for each) -> the batch's ``frames``.
    """

    def __init__(
        self,
        tokenize: Callable[[list[str]], Tensor | TapBatch],
        stack: Callable[[list[Any]], Frames | TapBatch] = Frames.of,
    ) -> None:
        self.tokenize, self.stack = tokenize, stack

    def __call__(self, examples: list[MomentExample]) -> MomentBatch:
        frames, texts, windows, saliency, positive, names = (list(column) for column in zip(*examples, strict=True))
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}  # of the videos of this batch
        pad = torch.nn.utils.rnn.pad_sequence
        most = max(1, *(len(own) for own in windows))
        padded = torch.full((len(windows), most, 2), torch.inf)
        for row, own in zip(padded, windows, strict=True):
            row[: len(own)] = own
        return MomentBatch(
            self.stack([frames[names.index(name)] for name in numbers]),
            self.tokenize(texts),
            padded,
            pad(saliency, batch_first=True),
            torch.tensor(positive),
            torch.tensor([numbers[name] for name in names]),
        )
