"""Uploaded files and zip archives: what they hold, checked before a byte is written."""

from __future__ import annotations

import contextlib
import functools
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from vlkit.cli.show import visible
from vlkit.errors import UserError

MOST_FILES = 5000
"""Most files of an upload, those in archives counted one by one."""
BLOCK = 1 << 20
JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")
"""Names that operating systems add to archives; hidden files are passed over, too."""


@dataclass(frozen=True)
class Upload:
    """An uploaded file: where it lies, the visitor's name for it, and the folder that it belongs into, if any."""

    path: Path
    name: str
    folder: str = ""


@dataclass(frozen=True)
class Part:
    """A file of an upload.

    Attributes:
        name: its relative path, with ``/`` between folders and never outside the upload.
        size: bytes, as stated.
        open: opens it for reading.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]

    @property
    def suffix(self) -> str:
        """Ending of the name in lower case, with its dot."""
        return PurePosixPath(self.name).suffix.lower()


@contextlib.contextmanager
def parts_of(uploads: Sequence[Upload], most_bytes: int) -> Iterator[list[Part]]:
    """The files of an upload, with those in zip archives one by one; hidden files and :data:`JUNK` are left out.

    Folders of an archive that hold nothing but one more folder are left out of its names.

    Args:
        uploads: files and archives.
        most_bytes: largest total size, unpacked.

    Raises:
        UserError: an archive is damaged or encrypted; a name leads out of the upload; a link; two files of one name;
            too many files or bytes.
    """
    parts: list[Part] = []
    with contextlib.ExitStack() as archives:
        for upload in uploads:
            if upload.name.lower().endswith(".zip"):
                parts += _unwrapped([part for part in _members(upload, archives) if not _is_junk(part.name)])
            else:
                name = _checked(str(PurePosixPath(upload.folder, PurePosixPath(upload.name).name)), upload.name)
                size = upload.path.stat().st_size
                parts.append(Part(name, size, functools.partial(upload.path.open, "rb")))
        parts = [part for part in parts if not _is_junk(part.name)]
        if len(parts) > MOST_FILES:
            raise UserError(f"The upload holds {len(parts):,} files; at most {MOST_FILES:,} are accepted.")
        if sum(part.size for part in parts) > most_bytes:
            raise _too_large(most_bytes)
        seen: set[str] = set()
        for part in parts:
            if part.name.lower() in seen:
                raise UserError(f"{visible(part.name)}: two uploaded files have this name; rename one.")
            seen.add(part.name.lower())
        yield parts


def common_folder(names: Sequence[str]) -> PurePosixPath:
    """The folder above the one that each file lies in, as deep as all have it in common: archives often hold the
    folders that matter in one more folder."""
    folders = [PurePosixPath(name).parent.parts for name in names]
    depth = 0
    while len({folder[: depth + 1] for folder in folders}) == 1 and all(len(folder) > depth + 1 for folder in folders):
        depth += 1
    return PurePosixPath(*folders[0][:depth]) if folders else PurePosixPath()


def write_parts(parts: Sequence[Part], folder: Path, most_bytes: int) -> None:
    """Write files below ``folder``.

    Args:
        parts: from :func:`parts_of`, within its block.
        folder: created if it does not exist.
        most_bytes: largest total size; what an archive states may be wrong, so the bytes are counted.

    Raises:
        UserError: a file is damaged, or there are more bytes.
    """
    left = most_bytes
    for part in parts:
        target = folder / part.name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open() as source, open(target, "xb") as file:
                while block := source.read(BLOCK):
                    left -= len(block)
                    if left < 0:
                        raise _too_large(most_bytes)
                    file.write(block)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{visible(part.name)}: cannot be unpacked ({error}); make the archive again.") from None
        except FileExistsError:
            raise UserError(f"{visible(part.name)}: two uploaded files have this name; rename one.") from None


def _members(upload: Upload, archives: contextlib.ExitStack) -> Iterator[Part]:
    shown = visible(upload.name)
    try:
        archive = archives.enter_context(zipfile.ZipFile(upload.path))
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise UserError(f"{shown}: is no readable zip archive ({error}); make it again.") from None
    if len(archive.infolist()) > MOST_FILES:
        raise UserError(f"{shown}: holds {len(archive.infolist()):,} files; at most {MOST_FILES:,} are accepted.")
    for member in archive.infolist():
        if member.is_dir():
            continue
        name = _checked(member.filename, f"{upload.name}: {member.filename}")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(f"{shown}: {visible(name)} is a link; put the file itself into the archive.")
        if member.flag_bits & 1:
            raise UserError(f"{shown}: is encrypted; make the archive without a password.")
        yield Part(name, member.file_size, lambda member=member: archive.open(member))


def _unwrapped(parts: Sequence[Part]) -> list[Part]:
    top = common_folder([part.name for part in parts])
    return [replace(part, name=str(PurePosixPath(part.name).relative_to(top))) for part in parts]


def _checked(name: str, shown: str) -> str:
    """``name`` as a relative path that stays where it is put.

    Raises:
        UserError: it is absolute, names a drive or a parent folder, or holds characters that no file name has.
    """
    path = name.replace("\\", "/")
    parts = PurePosixPath(path).parts
    outside = path.startswith("/") or ".." in parts or PureWindowsPath(path).drive
    if outside or not parts or any(ord(character) < 32 for character in path):
        raise UserError(f"{visible(shown)}: the name leads out of the upload; use plain relative names.")
    return str(PurePosixPath(*parts))


def _is_junk(name: str) -> bool:
    return any(part.startswith(".") or part in JUNK for part in PurePosixPath(name).parts)


def _too_large(most_bytes: int) -> UserError:
    return UserError(f"The upload has more than {most_bytes >> 20} MiB, unpacked; upload less.")
