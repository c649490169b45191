"""Find the media files of a folder. The same rules apply to indexing, data preparation and serving:

- Sub-folders are searched too. Files are selected by their ending, in upper or lower case.
- Hidden files and folders (names that begin with ".") are skipped, and so are thumbnail and system folders
  (:data:`COPIES`). The given folder itself may have any name.
- A link to a file counts as that file. A link to a folder outside the given one is followed. A link to a folder inside
  it is not, because its files are found anyway; nor is a link to a parent of the given folder. No folder is searched
  twice.
- Files whose names are not UTF-8 are indexed, but skipped for prepared datasets, whose manifests are text.

Skipped files are counted by ending or by cause and reported (:meth:`Scan.note`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vlkit.cli.show import visible
from vlkit.data.images.formats import HEIF_SUFFIXES, IMAGE_SUFFIXES, INSTALL_HEIF, UNREAD_SUFFIXES
from vlkit.errors import NothingThereError, UserError, some

VIDEO_SUFFIXES = (
    *(".mp4", ".webm", ".avi", ".mkv", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ogv"),
    *(".ts", ".m2ts"),
)
"""Endings of video files, most common first."""
COPIES = frozenset(
    {"@eadir", "__macosx", "thumbnails", "thumbs", "_thumbs", "#recycle", "$recycle.bin", "lost+found"}
    | {"system volume information"}
)
"""Names of thumbnail and system folders, in lower case."""
SUFFIXES: dict[str, Collection[str]] = {"images": IMAGE_SUFFIXES, "videos": VIDEO_SUFFIXES}


@dataclass
class Scan:
    """Result of :func:`find_media`.

    Attributes:
        folder: the folder that was searched.
        media: the kind of file searched for.
        names: sorted paths below the folder, separated by "/".
        endings: ending -> number of other files, which are skipped ("" = without an ending).
        causes: cause -> names skipped for that cause, with any ending.
    """

    folder: Path
    media: Literal["images", "videos"]
    names: list[str] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    causes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def paths(self) -> list[Path]:
        """The files found, in order."""
        return [self.folder / name for name in self.names]

    def note(self) -> str:
        """Skipped files on one line, ``skipped 12 files: 8 .mov, 4 .txt``; "" if there are none."""
        unread = sorted(self.endings.keys() & UNREAD_SUFFIXES if self.media == "images" else ())
        others = sorted(self.endings.keys() - set(unread))
        parts = [f"{self.endings[e]} {e} ({_advice(e)})" for e in unread]
        parts += [f"{self.endings[ending]} {ending or 'without an ending'}" for ending in others]
        causes = [f"{len(names)} {cause} ({some(names, 3)})" for cause, names in self.causes.items()]
        count = self.endings.total()
        groups = [f"{count} file{'s' * (count != 1)}: {', '.join(parts)}"] if parts else []
        groups += [", ".join(causes)] if causes else []
        return f"skipped {'; '.join(groups)}" if groups else ""


def _advice(ending: str) -> str:
    install = f"{INSTALL_HEIF}, or " if ending in HEIF_SUFFIXES else "not supported; "
    return f"{install}convert to JPEG or PNG"


def find_media(
    folder: str | Path,
    media: Literal["images", "videos"],
    flag: str = "",
    beside: Collection[str] = (),
    utf8_only: bool = False,
) -> Scan:
    """Find every image or video file below ``folder``; the module docstring has the rules.

    Args:
        flag: the flag that named the folder, for messages: ``--images``.
        beside: endings of files that are expected there and not reported, such as ``.txt``.
        utf8_only: skip files and folders whose name is not UTF-8.

    Raises:
        UserError: no such folder, or no such file in it (NothingThereError); the message says what it contains instead.
    """
    folder = Path(folder)
    where = f"{flag} {visible(folder)}".strip()
    if not folder.is_dir():
        raise UserError(f"{where}: no such folder")
    scan = Scan(folder, media)
    _Walk(scan, SUFFIXES[media], beside, utf8_only).enter("", os.path.realpath(folder))
    # Compare part by part, so that the files of a folder stay together.
    scan.names.sort(key=lambda name: name.split("/"))
    if not scan.names:
        note = scan.note()
        raise NothingThereError(
            f"{where}: no {media} there ({', '.join(sorted(SUFFIXES[media]))})" + (f"; {note}" if note else "")
        )
    return scan


class _Walk:
    """One walk through a folder, with its state."""

    def __init__(self, scan: Scan, suffixes: Collection[str], beside: Collection[str], utf8_only: bool) -> None:
        self.scan, self.utf8_only = scan, utf8_only
        self.suffixes, self.beside = frozenset(suffixes), frozenset(beside)
        self.root = os.path.realpath(scan.folder)
        self.entered: set[str] = set()

    def enter(self, base: str, real: str) -> None:
        """Search one folder: ``base`` is its path below the root ("" or "a/b/"), ``real`` its real path."""
        waiting = [(base, real)]
        while waiting:
            base, real = waiting.pop()
            if real in self.entered:
                continue
            self.entered.add(real)
            try:
                with os.scandir(real) as listed:
                    entries = sorted(listed, key=lambda entry: entry.name)
            except OSError as error:
                self._skip(f"folders that cannot be read: {error.strerror}", base)
                continue
            inner = [(f"{base}{entry.name}/", self._inner(entry, base + entry.name, real)) for entry in entries]
            waiting += [(path, folder) for path, folder in reversed(inner) if folder is not None]

    def _inner(self, entry: os.DirEntry[str], name: str, parent: str) -> str | None:
        """Record an entry; returns the real path if it is a folder to search."""
        suffix = os.path.splitext(entry.name)[1].lower()
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError:  # a link that leads to itself
            is_folder = is_file = False
        wanted = is_folder or suffix in self.suffixes
        if entry.name.startswith("."):
            if wanted:
                self._skip("hidden", name)
        elif self.utf8_only and not _is_utf8(entry.name):
            if wanted:
                self._skip("with a name that is not UTF-8, rename them", name)
        elif is_folder:
            return self._folder(entry, name, parent)
        elif is_file and wanted:
            self.scan.names.append(name)
        elif wanted:
            self._skip("broken links" if entry.is_symlink() else "that are not regular files", name)
        elif is_file and suffix not in self.beside:
            self.scan.endings[suffix] += 1
        return None

    def _folder(self, entry: os.DirEntry[str], name: str, parent: str) -> str | None:
        if entry.name.lower() in COPIES:
            self._skip("thumbnail or system folders", name)
            return None
        if not entry.is_symlink():
            return os.path.join(parent, entry.name)
        real = os.path.realpath(os.path.join(parent, entry.name))
        if _holds(self.root, real) and not self._hides(os.path.relpath(real, self.root)):
            return None  # found anyway
        if _holds(real, self.root):
            self._skip("links to a parent folder", name)
            return None
        return real

    def _hides(self, inside: str) -> bool:
        """Whether a folder below the root is skipped in its own place."""
        return any(part.startswith(".") or part.lower() in COPIES for part in inside.split(os.sep) if part != ".")

    def _skip(self, cause: str, name: str) -> None:
        self.scan.causes.setdefault(cause, []).append(visible(name.rstrip("/")))


def _holds(outer: str, inner: str) -> bool:
    return os.path.commonpath([outer, inner]) == outer


def _is_utf8(name: str) -> bool:
    """Python represents non-UTF-8 bytes of a name as lone surrogates, which cannot be encoded."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
