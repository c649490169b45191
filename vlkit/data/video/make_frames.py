"""Decode every clip of a dataset into frame folders, in parallel; may be killed and restarted at any time."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from vlkit.cli.show import Console, track, visible
from vlkit.data.images import MediaError
from vlkit.data.isolated import Lost, isolated
from vlkit.data.manifest import Dataset
from vlkit.data.video.frame_folders import Layout, description, folder_problem, write_folder
from vlkit.errors import UserError
from vlkit.files import write_text


@dataclass
class Made:
    """Result of :func:`make_frames`: clips decoded now, clips that existed, and (id, video, reason) of failures."""

    layout: Layout
    made: int = 0
    there: int = 0
    failed: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def failures_file(self) -> Path:
        """The list of failures, one per line: id, video and reason, separated by tabs; missing if there are none."""
        return self.layout.path.with_name(f"{self.layout.path.name}-failed.txt")

    def summary(self) -> str:
        """One line per failure, and the counts."""
        lines = [f"{video}: {reason}" for _, video, reason in self.failed]
        counts = f"{self.made} made, {self.there} there already, {len(self.failed)} failed"
        return visible("\n".join([*lines, f"{self.layout.path}: {self.made + self.there} clips ({counts})"]))


@dataclass(frozen=True)
class _Job:
    number: int
    folder: Path
    video: Path
    described: dict[str, Any]


def make_frames(dataset: Dataset, frames: int, size: int, workers: int, seconds: float) -> Made:
    """Decode every clip of ``dataset`` into its frame folder; correct existing folders are kept.

    Each folder is written atomically. The next run removes the partial files of a killed run and ends with the same
    files as an uninterrupted run. A clip that fails, crashes its process or takes more than ``seconds`` is listed in
    ``<frames>x<size>-failed.txt``, and tried again by the next run.

    Raises:
        UserError: cannot write, another run is active, or records with the same id are different clips.
    """
    layout = Layout(dataset.root, frames, size)
    jobs = _jobs(dataset, layout)
    try:
        layout.path.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(layout.path.with_name(f".{layout.path.name}.lock"), timeout=0):
            return _make(layout, jobs, workers, seconds)
    except filelock.Timeout:
        raise UserError(f"{layout.path}: another run makes these frames; wait for it to end") from None
    except OSError as error:
        raise UserError(
            f"{layout.path}: cannot write ({error.strerror or error}); make room, then start again"
        ) from error


def _make(layout: Layout, jobs: list[_Job], workers: int, seconds: float) -> Made:
    console = Console(stderr=True)
    parts = layout.path.with_name(f".{layout.path.name}.parts")
    shutil.rmtree(parts, ignore_errors=True)  # of a run that was killed
    result = Made(layout)
    with console.status("looking for existing frames"):
        left = [job for job in jobs if folder_problem(job.folder, job.described, job.video) is not None]
    result.there = len(jobs) - len(left)
    failed: dict[int, str] = {}
    calls = isolated(functools.partial(_make_one, parts=parts), left, min(workers, len(left)) or 1, seconds)
    bar = track(calls, "frames", len(left), console=console, transient=True, disable=not console.is_terminal)
    for job, reason in bar:
        if reason is not None:
            failed[job.number] = reason.reason if isinstance(reason, Lost) else reason
    shutil.rmtree(parts, ignore_errors=True)
    result.failed = [
        (job.described["id"], job.described["video"], failed[job.number]) for job in left if job.number in failed
    ]
    result.made = len(left) - len(failed)
    if failed:
        write_text(result.failures_file, "".join("\t".join(row) + "\n" for row in result.failed))
    else:
        result.failures_file.unlink(missing_ok=True)  # of an earlier run
    return result


def _make_one(job: _Job, parts: Path) -> str | None:
    """The reason why the clip cannot be decoded, or None if its folder was written."""
    try:
        write_folder(job.folder, job.video, job.described, parts)
    except MediaError as error:
        shutil.rmtree(job.folder, ignore_errors=True)  # of an earlier state of the file
        return error.reason
    return None


def _jobs(dataset: Dataset, layout: Layout) -> list[_Job]:
    """One job per record; a record in several splits is taken once."""
    seen: dict[str, dict[str, Any]] = {}
    jobs: list[_Job] = []
    for split in dataset.splits:
        for record in dataset.records(split):
            described = description(dataset, record, layout)
            if seen.setdefault(record["id"], described) != described:
                raise UserError(
                    f"{dataset.split_file(split)}: record {record['id']!r} is another clip than the one with this id "
                    "in another split; give it an id of its own"
                )
            if seen[record["id"]] is described:
                jobs.append(_Job(len(jobs), layout.folder(record), dataset.path(record), described))
    return jobs
