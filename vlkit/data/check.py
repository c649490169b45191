"""Open every image or video of a prepared dataset and report problems by manifest file and line."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from vlkit.cli.show import Console, track
from vlkit.data.boxes import file_problem
from vlkit.data.images import MediaError, open_record
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.data.records import RECORDS, Record, each_medium
from vlkit.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One problem: manifest file and line (0 = the whole file), the media file if it concerns one, and the reason."""

    file: str
    line: int
    media: str | None
    reason: str

    def __str__(self) -> str:
        return ": ".join(
            filter(None, (f"{self.file}:{self.line}" if self.line else self.file, self.media, self.reason))
        )


@dataclass
class Report:
    """Result of :func:`check_dataset`. ``good`` holds the records without a problem, by split."""

    dataset: Dataset
    records: int = 0
    media: int = 0
    problems: list[Problem] = field(default_factory=list)
    good: dict[str, list[Record]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """JSON value with ``dataset``, ``task``, ``records``, ``media`` (counts) and ``problems``."""
        problems = [asdict(problem) for problem in self.problems]
        counts = {"records": self.records, "media": self.media}
        return {"dataset": str(self.dataset.root), "task": self.dataset.task, **counts, "problems": problems}


@dataclass(frozen=True)
class _Opened:
    """Result of opening one media file: the reason if it failed, or the size of an image in pixels."""

    reason: str | None = None
    size: tuple[int, int] | None = None


def check_dataset(dataset: Dataset, *, workers: int) -> Report:
    """Check every record and open every media file once, in ``workers`` threads; shows progress if stderr is a
    terminal.

    Images are decoded completely, so truncated files are found. Boxes and the size stated in a record are compared with
    the size of the file. Existing frame folders of videos (``data_prep/frames.py``) are checked as well.
    """
    report = Report(dataset)
    scanned = {split: list(dataset.scan(split)) for split in dataset.splits}
    media_field = RECORDS[dataset.task].media
    good = (cast(Record, record) for lines in scanned.values() for _, record, problem in lines if problem is None)
    media: dict[str, Record] = {}
    if media_field:
        media = {each[media_field]: each for record in good for each in each_medium(record, dataset.task)}
    opened = _open_all(dataset, dict(sorted(media.items())), workers)
    report.media = len(media)
    for split, lines in scanned.items():
        file = str(dataset.split_file(split))
        kept = report.good[split] = []
        for line, record, problem in lines:
            report.records += line > 0
            path = record.get(media_field) if media_field and isinstance(record, dict) else None
            if problem is None and media_field:
                problem, path = _first_problem(cast(Record, record), dataset.task, media_field, opened)
            if problem is None:
                kept.append(cast(Record, record))
            else:
                report.problems.append(Problem(file, line, path if isinstance(path, str) else None, problem))
    if RECORDS[dataset.task].media == "video":
        report.problems += _frame_problems(dataset, report.good)
    return report


def write_clean(report: Report, output: str | Path) -> Dataset:
    """Write a copy of the dataset with the good records only; splits without good records are left out."""
    dataset = report.dataset
    output = Path(output)
    if output.resolve() == dataset.root.resolve():
        raise UserError(f"--write_clean {output}: is the dataset itself; give another folder")
    splits = {split: records for split, records in report.good.items() if records}
    if not splits:
        raise UserError(f"{dataset.root}: no good record is left to write")
    return write_dataset(
        output,
        name=dataset.name,
        task=dataset.task,
        splits=splits,
        media_root=dataset.media_root.resolve(),
        source={"cleaned": str(dataset.root.resolve()), "source": dataset.source},
        extra=dataset.extra,
    )


def _open_all(dataset: Dataset, media: dict[str, Record], workers: int) -> dict[str, _Opened]:
    """Open each medium once, of one of its records."""
    opener = _video_opener(dataset) if RECORDS[dataset.task].media == "video" else _image_opener(dataset)
    console = Console(stderr=True)
    pool = ThreadPoolExecutor(workers)
    try:
        results = pool.map(opener, media.values())
        bar = track(results, "checking", len(media), console=console, transient=True, disable=not console.is_terminal)
        return dict(zip(media, bar, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, waiting files are not opened


def _image_opener(dataset: Dataset) -> Callable[[Record], _Opened]:
    def open_image(record: Record) -> _Opened:
        try:
            return _Opened(size=open_record(dataset, record).size)
        except MediaError as error:
            return _Opened(error.reason)

    return open_image


def _video_opener(dataset: Dataset) -> Callable[[Record], _Opened]:
    try:
        from vlkit.data.video.probe import probe  # heavy decoders; images do not need them
    except ImportError as error:
        raise UserError(f"videos cannot be checked: {error}; install the video decoders of vlkit") from error

    def open_video(record: Record) -> _Opened:
        try:
            probe(dataset.path(record))
        except MediaError as error:
            return _Opened(error.reason)
        return _Opened()

    return open_video


def _frame_problems(dataset: Dataset, good: dict[str, list[Record]]) -> list[Problem]:
    """Problems of the good records' frame folders; the folder of a clip in several splits is opened once."""
    from vlkit.data.video.frame_source import folder_problems  # heavy decoders, as above

    records = {record["id"]: record for records in good.values() for record in records}
    fix = "make it again with data_prep/frames.py, or remove it"
    return [Problem(file, 0, None, f"{why}; {fix}") for file, why in folder_problems(dataset, list(records.values()))]


def _first_problem(record: Record, task: str, field: str, opened: dict[str, _Opened]) -> tuple[str | None, str]:
    """The problem of the first bad medium of a record (None: all are good), and the path of that medium."""
    for each in each_medium(record, task):
        medium = opened[each[field]]
        problem = medium.reason or _size_problem(each, medium.size)
        if problem:
            return problem, each[field]
    return None, record[field]


def _size_problem(record: Record, size: tuple[int, int] | None) -> str | None:
    return file_problem(record, size) if size and "box" in record else None
