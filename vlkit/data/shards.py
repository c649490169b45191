"""Shards: pieces of an image collection that are read in one go and worked on independently.

A shard is a WebDataset tar, a parquet file with a column of images, or a slice of a folder. What cannot be read is an
entry with a reason, never the end of the work.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkit.cli.show import visible
from vlkit.data.images import IMAGE_SUFFIXES
from vlkit.data.scan import find_media
from vlkit.errors import UserError, some

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SLICE = 4096
"""Images of a folder per shard."""
LARGEST_FILE = 2**28
"""Bytes of an image file inside a shard; larger ones are not read into memory."""
SLICE_NAME = re.compile(r"\d{6,}")
"""Name of a shard that is a slice of a folder."""
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_ROWS = 64  # of a parquet file, read at once


@dataclass(frozen=True)
class Entry:
    """An image file of a shard.

    Attributes:
        id: ``<shard>/<member>``, in a folder the path below it.
        content: the file's bytes; empty if there is an ``error``.
        error: the reason why it could not be read.
    """

    id: str
    content: bytes = b""
    error: str = ""


@dataclass(frozen=True)
class Shard:
    """One shard.

    Attributes:
        name: unique within the input; can be part of a file name.
        path: the tar or parquet file, or the folder.
        files: paths below the folder; empty for a tar or parquet file.
        column: the column of a parquet file that holds the images.
    """

    name: str
    path: Path
    files: tuple[str, ...] = ()
    column: str = "image"

    def stamp(self) -> str:
        """Names (in a folder), sizes and modification times of the files; equal stamps mean "unchanged"."""
        paths = [self.path / name for name in self.files] or [self.path]
        states = [os.stat(path) if path.exists() else None for path in paths]
        total = sum(state.st_size for state in states if state)
        newest = max((state.st_mtime_ns for state in states if state), default=0)
        names = f", names {zlib.crc32(chr(0).join(self.files).encode()):08x}" if self.files else ""
        return f"{len(paths)} files, {total} bytes, {newest}{names}"

    def entries(self) -> Iterator[Entry]:
        """The image files in order. Damage ends the shard with an entry that says where."""
        if self.files:
            return _read_files(self.path, self.files)
        return _read_parquet(self) if self.path.suffix == ".parquet" else _read_tar(self)


def find_shards(inputs: Sequence[str], column: str = "image", slice_size: int = SLICE) -> list[Shard]:
    """The shards that a command line names.

    Args:
        inputs: tar or parquet files, with ranges ``{000..099}`` or ``*``; or one folder of such files or of images.
        column: the column of parquet files that holds the images: bytes, or a struct with a field ``bytes``.
        slice_size: images of a folder per shard.

    Raises:
        UserError: nothing is there, or a file is no shard.
    """
    paths = [Path(found) for pattern in inputs for found in _expand(pattern)]
    folders = [path for path in paths if path.is_dir()]
    if folders and len(paths) > 1:
        raise UserError(f"{folders[0]}: is a folder; give one folder, or shard files alone")
    if folders:
        inside = sorted(path for path in folders[0].iterdir() if _is_shard(path))
        # img2dataset writes a table about each tar beside it.
        tars = {path.stem for path in inside if path.suffix == ".tar"}
        inside = [path for path in inside if path.suffix != ".parquet" or path.stem not in tars]
        if not inside:
            return _slices(folders[0], slice_size)
        paths = inside
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        raise UserError(f"{some(missing or list(inputs))}: no such file; give a folder, or shards/{{000..099}}.tar")
    wrong = [path for path in paths if not _is_shard(path)]
    if wrong:
        raise UserError(f"{some(wrong)}: no shard; give .tar or .parquet files, or a folder of images")
    top = os.path.commonpath([path.absolute().parent for path in paths])
    names = ["--".join(Path(os.path.relpath(path.absolute(), top)).parts) for path in paths]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise UserError(f"{some(twice)}: is named twice; name each shard once")
    return [Shard(visible(name), path, column=column) for name, path in zip(names, paths, strict=True)]


def _is_shard(path: Path) -> bool:
    return path.name.lower().endswith((*TAR_SUFFIXES, ".parquet"))


def _slices(folder: Path, size: int) -> list[Shard]:
    names = find_media(folder, "images", utf8_only=True).names
    starts = range(0, len(names), size)
    return [Shard(f"{start // size:06d}", folder, tuple(names[start : start + size])) for start in starts]


def _expand(pattern: str) -> list[str]:
    """``a/{08..10}.tar`` -> a/08.tar, a/09.tar, a/10.tar; names with ``*`` as they exist."""
    found = _RANGE.search(pattern)
    if found:
        first, last = int(found[1]), int(found[2])
        width = len(found[1]) if found[1].startswith("0") else 0
        texts = (f"{pattern[: found.start()]}{n:0{width}d}{pattern[found.end() :]}" for n in range(first, last + 1))
        return [name for text in texts for name in _expand(text)]
    return sorted(glob.glob(pattern)) if "*" in pattern and not os.path.exists(pattern) else [pattern]


def _read_files(folder: Path, names: Sequence[str]) -> Iterator[Entry]:
    for name in names:
        try:
            yield Entry(name, (folder / name).read_bytes())
        except OSError as error:
            yield Entry(name, error=f"cannot be read ({error.strerror or error})")


def _read_tar(shard: Shard) -> Iterator[Entry]:
    """The image files of a tar, in its order; other members (captions, JSON) are passed over."""
    count = 0
    try:
        with tarfile.open(shard.path, "r:*") as archive:
            for member in archive:
                if not member.isfile() or os.path.splitext(member.name)[1].lower() not in IMAGE_SUFFIXES:
                    continue
                name = f"{shard.name}/{visible(member.name)}"
                if member.size > LARGEST_FILE:
                    yield Entry(name, error=f"too large: {member.size} bytes exceeds {LARGEST_FILE}")
                    continue
                file: Any = archive.extractfile(member)  # None for members that are no files
                yield Entry(name, file.read())
                count += 1
            # tarfile takes a damaged header for the end; the true end is a block of zeros.
            end: Any = archive.fileobj
            end.seek(archive.offset)
            if end.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                yield Entry(shard.name, error=f"damaged or incomplete after {count} images: the end mark is missing")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        yield Entry(shard.name, error=f"damaged or incomplete after {count} images ({_phrase(error)})")


def _read_parquet(shard: Shard) -> Iterator[Entry]:
    """The rows of a parquet file, named by their path where the column has one, else by their number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(shard.path) as file:
            if shard.column not in file.schema_arrow.names:
                raise UserError(
                    f"{shard.path}: has no column {shard.column!r}, but {some(file.schema_arrow.names, 10)}; name the "
                    "one with the images"
                )
            for batch in file.iter_batches(_ROWS, columns=[shard.column]):
                for value in batch.column(0).to_pylist():
                    path = value.get("path") if isinstance(value, dict) else None
                    content = value.get("bytes") if isinstance(value, dict) else value
                    name = f"{shard.name}/{visible(path) if path else row}"
                    row += 1
                    if isinstance(content, bytes) and len(content) <= LARGEST_FILE:
                        yield Entry(name, content)
                    else:
                        yield Entry(name, error="holds no bytes of an image file")
    except (pa.ArrowException, OSError) as error:
        yield Entry(shard.name, error=f"damaged or incomplete after {row} rows ({_phrase(error)})")


def _phrase(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
