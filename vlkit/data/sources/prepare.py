"""The last step of every source: check that the media exist, compare counts, write the prepared dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlkit.cli.show import visible
from vlkit.data.manifest import Dataset, write_dataset
from vlkit.data.media_folder import MediaFolder
from vlkit.data.records import RECORDS, Record, media_fields
from vlkit.errors import UserError, some
from vlkit.files import write_text

MISSING_LIST, WRONG_LIST = "missing.txt", "wrong.txt"
"""Files of a prepared dataset that list what --partial left out: paths of media, and wrong annotations."""
Counts = dict[str, tuple[int, int]]  # split -> (media, texts)


@dataclass
class Source:
    """Content of official files, before any media file is checked.

    Attributes:
        splits: split -> records, in the order of the annotation file; media paths as the files state them.
        inputs: JSON value for the field ``source`` of ``dataset.json``.
        counts: split -> (media, texts) as read, before anything was left out.
        notes: notes for the user, one line each.
        blank_texts: number of captions that were blank and left out.
        without_text: ids of records that had no caption left and were left out.
        wrong: wrong annotations in otherwise sound files (such as a box outside its image): one line each with file,
            place and reason.
        elsewhere: other relative paths to try if a media file is not at the stated one.
        extra: further fields of ``dataset.json``.
        located: the media are known to be there (inside archives), and are not searched for.
    """

    name: str
    task: str
    splits: dict[str, list[Record]]
    inputs: Any
    counts: Counts = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    blank_texts: int = 0
    without_text: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    elsewhere: Callable[[str], Iterable[str]] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    located: bool = False


@dataclass
class Prepared:
    """A written dataset, the missing media (relative paths) and notes for the user, one line each."""

    dataset: Dataset
    missing: list[str]
    notes: list[str]

    def summary(self) -> str:
        """Counts per split as a small table, then the notes; printable, whatever the names contain."""
        dataset = self.dataset
        medium = RECORDS[dataset.task].media
        media = f"{medium}s" if medium else ""
        lines = [
            f"{dataset.name} ({dataset.task}) -> {dataset.root}",
            f"{'split':<10} {media:>9} {'records':>9} {'texts':>9}",
        ]
        for split, entry in dataset.splits.items():
            counts = (
                f"{entry['media']:,}" if medium else "",
                f"{entry['records']:,}",
                f"{entry['texts']:,}" if "texts" in entry else "-",
            )
            lines.append(f"{split:<10} " + " ".join(f"{count:>9}" for count in counts))
        return visible("\n".join(lines + [f"note: {note}" for note in self.notes]))


def prepare(source: Source, output: str | Path, media_root: str | Path, *, partial: bool = False) -> Prepared:
    """Check that the media exist and write ``source`` as a prepared dataset.

    Args:
        media_root: the folder with the media, as the user gave it; stored relative to ``output`` if it lies inside,
            else as an absolute path.
        partial: leave out records whose medium is missing, and annotations that are wrong, and list both in
            ``missing.txt`` and ``wrong.txt`` of ``output``.

    Raises:
        UserError: no media folder, media missing or annotations wrong without ``partial``, nothing left, or ``output``
            cannot be written.
    """
    media_root = Path(media_root)
    if not media_root.is_dir():
        raise UserError(
            f"{visible(media_root)}: no such folder; give the folder with the {RECORDS[source.task].media}s"
        )
    splits, missing, moved = _locate(source, MediaFolder(media_root))
    notes = list(source.notes)
    if source.wrong:
        notes.append(_wrong_note(source, partial))
    if source.blank_texts:
        notes.append(f"{source.blank_texts} blank texts were left out")
    if source.without_text:
        notes.append(f"{len(source.without_text)} records have no text and were left out: {some(source.without_text)}")
    if missing:
        what = f"{len(missing)} of {_distinct(source)} {RECORDS[source.task].media}s are not in {media_root}"
        names = some(missing)
        if not partial:
            raise UserError(f"{what}: {names}; correct the folder, or add --partial to leave them out")
        if not any(splits.values()):
            raise UserError(f"{what}: {names}; nothing is left, correct the folder")
        notes.append(f"{what}; left out and listed in {MISSING_LIST}")
    if moved:
        notes.append(f"{moved} {RECORDS[source.task].media}s were found under another path than the annotations state")
    for split in [split for split, records in splits.items() if not records]:
        del splits[split]
        notes.append(f'split "{split}" is empty and was left out')
    root, output = media_root.resolve(), Path(output)
    if root.is_relative_to(output.resolve()):
        root = root.relative_to(output.resolve())  # such a folder can be moved as a whole
    dataset = write_dataset(
        output,
        name=source.name,
        task=source.task,
        splits=splits,
        media_root=root,
        source=source.inputs,
        extra=source.extra,
    )
    for name, lines in ((MISSING_LIST, missing), (WRONG_LIST, source.wrong)):
        if lines:
            write_text(dataset.root / name, "".join(f"{line}\n" for line in lines))
        else:
            (dataset.root / name).unlink(missing_ok=True)  # of an earlier run
    return Prepared(dataset, missing, notes)


def _wrong_note(source: Source, partial: bool) -> str:
    if not partial:
        more = len(source.wrong) - 1
        others = f"; {more} more annotations are wrong" if more else ""
        raise UserError(f"{source.wrong[0]}{others}; correct the file, or add --partial to leave them out")
    if not any(source.splits.values()):
        raise UserError(f"{source.wrong[0]}; nothing else is left, correct the file")
    return f"{len(source.wrong)} annotations are wrong; left out and listed in {WRONG_LIST}"


def compare_counts(source: Source, official: Counts) -> list[str]:
    """Notes on splits that seem to be the official ones (over half of their media) but have other counts."""
    total = sum(media for media, _ in official.values())
    if 2 * sum(media for media, _ in source.counts.values()) <= total:
        return []
    notes = []
    for split, expected in official.items():
        found = source.counts.get(split, (0, 0))
        if found != expected:
            counts = f"{found[0]:,} {RECORDS[source.task].media}s and {found[1]:,} texts"
            notes.append(f'split "{split}" has {counts}, the official file {expected[0]:,} and {expected[1]:,}')
    return notes


def add_record(source: Source, split: str, record: Record, texts: Iterable[str]) -> None:
    """Append a record with its captions, stripped of blanks around them, and count it; blank captions are dropped.

    A record without any caption left is left out and noted, because it cannot be retrieved.
    """
    texts = list(texts)
    media, captions = source.counts.get(split, (0, 0))
    source.counts[split] = (media + 1, captions + len(texts))
    record["texts"] = [text for text in map(_clean, texts) if text]
    if record["texts"]:
        source.splits.setdefault(split, []).append(record)
    else:
        source.without_text.append(record["id"])
    source.blank_texts += len(texts) - len(record["texts"])


def _clean(text: str) -> str:
    """Strip blanks around a caption; lone surrogates (from JSON escapes) become "?"."""
    return text.strip().encode("utf-8", "replace").decode("utf-8")


def _locate(source: Source, folder: MediaFolder) -> tuple[dict[str, list[Record]], list[str], int]:
    """Return the records whose media exist, the missing paths, and how many were found at another path."""
    if RECORDS[source.task].media is None or source.located:
        return dict(source.splits), [], 0
    found: dict[str, str | None] = {}
    splits: dict[str, list[Record]] = {}
    for split, records in source.splits.items():
        kept = splits[split] = []
        for record in records:
            fields = media_fields(record, source.task)
            for stated in (record[name] for name in fields):
                if stated not in found:
                    paths = [stated, *(source.elsewhere(stated) if source.elsewhere else ())]
                    found[stated] = next(filter(None, map(folder.find, paths)), None)
            if all(found[record[name]] is not None for name in fields):
                moved_to = {name: found[record[name]] for name in fields if found[record[name]] != record[name]}
                kept.append({**record, **moved_to} if moved_to else record)
    missing = [path for path, actual in found.items() if actual is None]
    moved = sum(actual is not None and actual != path for path, actual in found.items())
    return splits, missing, moved


def _distinct(source: Source) -> int:
    records = [record for records in source.splits.values() for record in records]
    return len({record[name] for record in records for name in media_fields(record, source.task)})
