"""Find the files named in annotations, whichever Unicode form either side uses."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from pathlib import Path


class MediaFolder:
    """The files below a folder. Each sub-folder is listed once, so 10**5 lookups cost a few system calls.

    "é" is one character or an "e" followed by an accent: macOS writes the second form, most annotations the first. A
    name that is not found as written is therefore searched for in either form.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._listed: dict[str, frozenset[str]] = {}
        self._composed: dict[str, dict[str, str]] = {}

    def find(self, relative: str) -> str | None:
        """The path below the root, separated by "/", of the file that ``relative`` names; None if there is none."""
        folder, name = posixpath.split(relative)
        if name in self._names(folder):
            return relative
        if relative.isascii():
            return None  # has one form only
        actual = folder if self._names(folder) or not folder else self.find(folder)
        if actual is None:
            return None
        if actual not in self._composed:
            self._composed[actual] = {unicodedata.normalize("NFC", each): each for each in self._names(actual)}
        found = self._composed[actual].get(unicodedata.normalize("NFC", name))
        return None if found is None else posixpath.join(actual, found)

    def __contains__(self, relative: str) -> bool:
        return self.find(relative) is not None

    def _names(self, folder: str) -> frozenset[str]:
        if folder not in self._listed:
            try:
                self._listed[folder] = frozenset(os.listdir(self.root / folder))
            except (OSError, ValueError):  # ValueError: a NUL character in the path
                self._listed[folder] = frozenset()
        return self._listed[folder]
