"""Video-text records as examples for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from vlkit.data.images import identify_file
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.data.transforms import frame_transform
from vlkit.data.video.clip_frames import Clip, ClipFrames, Sampling, read_frames
from vlkit.data.video.frame_batch import Frames
from vlkit.data.video.frame_source import FrameSource
from vlkit.encoders.bases import Preprocess
from vlkit.errors import UserError
from vlkit.tasks.retrieval.data import CaptionedRecords

HELD_OUT_SEED = 0  # chooses the held-out videos: the same for every seed of a run


class ClipReader:
    """Reads clips with a base's preprocessing: [t, 3, H, W] uint8 with 1 <= t <= ``count``.

    Args:
        preprocess: size and interpolation.
        count: frames per clip; shorter clips give all their frames.
        sampling: see :func:`vlkit.data.video.clip_frames.read_frames`.

    Attributes:
        size: short side of decoded frames, in pixels.
    """

    def __init__(self, preprocess: Preprocess, count: int = 12, sampling: Sampling = "uniform") -> None:
        if count < 1:
            raise UserError(f"--frames {count}: must be at least 1")
        self.sampling: Sampling = sampling
        self.count, self.size = count, max(preprocess.size)
        self.transform = frame_transform(preprocess)

    def __call__(self, clip: Clip) -> Tensor:
        """The frames of a clip.

        Raises:
            vlkit.data.images.MediaError: the file cannot be used; names it and the reason.
        """
        return self.tensor(read_frames(clip.path, self.count, clip.start, clip.end, self.sampling, size=self.size))

    def tensor(self, found: ClipFrames) -> Tensor:
        """Decoded frames at the base's size."""
        return torch.stack([self.transform(image) for image in found.images()])


class RecordFrames:
    """Frames of a split's records as tensors: from memory, from frame folders, or decoded.

    Args:
        dataset: a prepared dataset.
        split: which split.
        reader: frames per clip, sampling and size.
        keep_bytes: size of the in-memory cache of decoded frames, per worker process. Not used where times are drawn
            anew on each access.

    Attributes:
        records: the records of the split.
    """

    def __init__(self, dataset: Dataset, split: str, reader: ClipReader, keep_bytes: int = 0) -> None:
        self.source = FrameSource(dataset, split, reader.count, reader.size, reader.sampling)
        self.records, self.reader = self.source.records, reader
        self._kept: dict[str, Tensor] = {}
        self._room = keep_bytes

    def read(self, record: Record, generator: torch.Generator | None = None) -> Tensor:
        """[t, 3, H, W] uint8; ``generator`` draws the times for sampling ``segment``, None takes the centres.

        Raises:
            UserError: the clip cannot be read.
        """
        if record["id"] in self._kept:
            return self._kept[record["id"]]
        frames = self.reader.tensor(self.source.read(record, generator))
        if frames.nbytes <= self._room and generator is None:
            self._room -= frames.nbytes
            self._kept[record["id"]] = frames
        return frames


class VideoTextPairs(CaptionedRecords):
    """(frames, sentence) examples; the group number marks sentences of one video.

    Args:
        frames: frames of the split. With sampling ``segment`` the times are drawn anew on each access.
        records: the records to use as examples.
        every_caption: each sentence is a separate example (CLIP4Clip's "expand sentences"); else each video is one,
            with a sentence drawn on each access.
    """

    def __init__(self, frames: RecordFrames, records: Sequence[Record], every_caption: bool = True) -> None:
        super().__init__(records, every_caption)
        self.frames = frames

    def __getitem__(self, index: int) -> tuple[Tensor, str, int]:
        """Frames [t, 3, H, W] uint8, a sentence and the group number."""
        # Drawn before the frames are read, so that the frame cache does not change results.
        group, caption = self.choose(index)
        generator = None
        if self.frames.reader.sampling == "segment":
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        return self.frames.read(self.records[group], generator), self.captions[caption], group

    def identify(self, group: int) -> list[Any]:
        """A value that changes when the clip does: its file's path, size and modification time, and its times."""
        record, source = self.records[group], self.frames.source
        return [*identify_file(source.dataset.path(record)), record.get("start"), record.get("end")]

    def load(self, groups: list[int]) -> list[Tensor]:
        """Frames of each clip, [t, 3, H, W] uint8; deterministic with uniform sampling."""
        return [self.frames.read(self.records[group]) for group in groups]


class VideoCollate:
    """Examples of :class:`VideoTextPairs` -> :class:`Frames` of B videos, ids [B, L], groups [B].

    Args:
        tokenize: texts -> ids [B, L].
        trim: removes padding without changing outputs (:meth:`vlkit.encoders.towers.text.TextEncoder.trim`).
    """

    def __init__(self, tokenize: Callable[[list[str]], Tensor], trim: Callable[[Tensor], Tensor]) -> None:
        self.tokenize, self.trim = tokenize, trim

    def __call__(self, examples: list[tuple[Tensor, str, int]]) -> tuple[Frames, Tensor, Tensor]:
        videos, texts, groups = zip(*examples, strict=True)
        return Frames.of(videos), self.trim(self.tokenize(list(texts))), torch.tensor(groups)


def hold_out(records: Sequence[Record], share: float) -> tuple[list[Record], list[Record]]:
    """Split records into a training and a validation part, by whole video files.

    Args:
        share: share of the files to hold out; at least one file is held out.

    Raises:
        UserError: fewer than two files.
    """
    files = list(dict.fromkeys(record["video"] for record in records))
    if len(files) < 2:
        raise UserError("--data.hold_out: a single training video leaves none for validation; give --data.validation")
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(HELD_OUT_SEED)).tolist()
    held = {files[i] for i in order[: min(len(files) - 1, max(1, round(share * len(files))))]}
    return [r for r in records if r["video"] not in held], [r for r in records if r["video"] in held]


def clip_batches(
    sources: Sequence[Any], read: Callable[[Any], Tensor], size: int, threads: int = 4
) -> Iterator[Frames]:
    """Read clips in a few threads, one batch ahead: yields :class:`Frames` of up to ``size`` clips, in order."""
    with ThreadPoolExecutor(threads) as pool:
        ahead = None
        for start in range(0, len(sources), size):
            batch = [pool.submit(read, source) for source in sources[start : start + size]]
            if ahead:
                yield Frames.of([future.result() for future in ahead])
            ahead = batch
        if ahead:
            yield Frames.of([future.result() for future in ahead])
