"""Frames of a dataset's clips, for training and evaluation: from frame folders if they exist, else decoded."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from vlkit.data.images import MediaError
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.data.video.clip_frames import ClipFrames, Sampling, read_frames
from vlkit.data.video.frame_folders import Layout, description, folder_name, folder_problem, layouts, read_folder
from vlkit.errors import UserError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


class FrameSource:
    """Gives the frames of each record of a split; :attr:`description` states their source and is logged once.

    It holds no open file, so data loader workers can copy it and threads can share it.

    Args:
        dataset: a prepared dataset of the task ``video_retrieval``.
        split: which split.
        frames: frames per clip, T.
        size: short side of the frames in pixels, if the clip has as many; folders of smaller frames are not used.
            None = take the folders with the largest frames, and decode at full size.
        sampling: as in :func:`~vlkit.data.video.clip_frames.read_frames`. Folders hold uniform frames only, so with
            ``segment`` everything is decoded.

    Attributes:
        records: the records of the split.
        from_folders: how many of them have a frame folder.
        layout: the frame folders in use, or None.
        description: one line for the log.
    """

    def __init__(
        self, dataset: Dataset, split: str, frames: int, size: int | None = None, sampling: Sampling = "uniform"
    ) -> None:
        if frames < 1:
            raise UserError(f"{frames} frames: give 1 or more")
        self.sampling: Sampling = sampling
        self.dataset, self.frames, self.size = dataset, frames, size
        self.records = dataset.records(split)
        self.layout = _fitting(dataset, frames, size) if sampling == "uniform" else None
        self._made = self.layout.made() if self.layout else frozenset()
        self.from_folders = sum(folder_name(record["id"]) in self._made for record in self.records)
        self.description = self._describe(split)
        log.info(self.description)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> ClipFrames:
        """Frames of record ``index``; see :meth:`read`."""
        return self.read(self.records[index])

    def read(self, record: Record, generator: torch.Generator | None = None) -> ClipFrames:
        """Frames of one record, at most T; ``generator`` makes ``segment`` sampling random.

        Raises:
            UserError: they cannot be read; the message names the file, the reason and the script that fixes it.
        """
        if self.layout and folder_name(record["id"]) in self._made:
            return self._from_folder(record, self.layout)
        path = self.dataset.path(record)
        try:
            return read_frames(
                path, self.frames, record.get("start"), record.get("end"), self.sampling, generator, self.size
            )
        except MediaError as error:
            raise UserError(
                f"{error} (record {record['id']!r} of {self.dataset.root}); run data_prep/check.py "
                f"{self.dataset.root} to list every bad file, and --write_clean there to leave them out"
            ) from None

    def _from_folder(self, record: Record, layout: Layout) -> ClipFrames:
        folder = layout.folder(record)
        described = description(self.dataset, record, layout)
        reason = folder_problem(folder, described, self.dataset.path(record))
        try:
            if reason is None:
                return read_folder(folder, self.frames, self.size)
        except MediaError as error:
            reason = str(error)
        fix = f"data_prep/frames.py {self.dataset.root} --frames {layout.frames} --size {layout.size}"
        raise UserError(f"{folder}: {reason}; make these frames again by {fix}, or remove the folder") from None

    def key(self) -> dict[str, Any]:
        """The settings that determine the pixels besides the videos, as a JSON value for a cache key."""
        stored = None if self.layout is None else {"size": self.layout.size, "clips": self.from_folders}
        return {"frames": self.frames, "size": self.size, "sampling": self.sampling, "folders": stored}

    def _describe(self, split: str) -> str:
        total = len(self.records)
        if self.layout is None:
            how = f"all {total} decoded from the videos" + ("" if self.sampling == "uniform" else f" ({self.sampling})")
        else:
            how = f"{self.from_folders} of {total} from {self.layout.path}"
            rest = total - self.from_folders
            how += f", {rest} decoded from the videos" if rest else ""
        return f"frames of {split}: {self.frames} per clip, {how}"


def _fitting(dataset: Dataset, frames: int, size: int | None) -> Layout | None:
    """The frame folders to use: the smallest that are large enough, or the largest."""
    found = [layout for layout in layouts(dataset.root) if layout.frames == frames and layout.size >= (size or 1)]
    return (found[-1] if size is None else found[0]) if found else None


def folder_problems(dataset: Dataset, records: list[Record]) -> list[tuple[str, str]]:
    """(folder, problem) for frame folders of ``records`` that are damaged or hold other frames than expected.

    Images are decoded completely. A record without a folder is not a problem.
    """
    problems = []
    for layout in layouts(dataset.root):
        made = layout.made()
        for record in records:
            folder = layout.folder(record)
            if folder.name not in made:
                continue
            reason = folder_problem(folder, description(dataset, record, layout), dataset.path(record))
            try:
                if reason is None:
                    read_folder(folder, layout.frames)
            except MediaError as error:
                reason = f"{error.path.rpartition('/')[2]}: {error.reason}"
            if reason:
                problems.append((str(folder), reason))
    return problems
