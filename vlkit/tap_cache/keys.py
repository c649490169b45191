"""The keys of a folder of tap caches: what each takes and what it is good for, and the removal of those of no use."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlkit.errors import UserError
from vlkit.files import read_json
from vlkit.tap_cache.store import stored_rows
from vlkit.tap_cache.usage import KEY_FILE, USES_FILE, Uses, read_uses, take

DAY = 24 * 3600


@dataclass(frozen=True)
class StoredKey:
    """One folder of cached taps.

    Attributes:
        folder: where it is; its name is that of the tower and a digest of the key.
        about: the key: base, preprocessing, layers, number format (``key.json``); empty if it cannot be read.
        rows: samples on disk.
        size: bytes on disk.
        used: when it was last used, in seconds since 1970.
        uses: what runs asked of it.
    """

    folder: Path
    about: Mapping[str, Any]
    rows: int
    size: int
    used: float
    uses: Uses

    @property
    def name(self) -> str:
        """Name of the folder, such as ``image-9dd78733b0d4e0b0``."""
        return self.folder.name

    @property
    def base(self) -> str:
        """The base and its weights, such as ``ViT-B-32:openai``."""
        base = self.about.get("base")
        if not isinstance(base, Mapping):
            return "?"
        weights = Path(str(base["weights"])).name if base.get("weights") else ""
        return ":".join(part for part in (str(base.get("name", "?")), weights) if part)

    @property
    def taps(self) -> str:
        """Layers and number format, such as ``0-11 bf16``."""
        layers = [int(layer) for layer in self.about.get("layers", ())]
        runs: list[list[int]] = []
        for layer in layers:
            if runs and layer == runs[-1][-1] + 1:
                runs[-1].append(layer)
            else:
                runs.append([layer])
        shown = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
        return f"{shown or 'none'} {self.about.get('dtype', '?')}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: name, folder, base, taps, rows, bytes, used, read, computed, hit_rate."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "base": self.base,
            "taps": self.taps,
            "rows": self.rows,
            "bytes": self.size,
            "used": round(self.used),
            **self.uses._asdict(),
            "hit_rate": self.uses.hit_rate,
        }


def stored_keys(root: Path) -> list[StoredKey]:
    """The keys in a folder of caches, last used first.

    Raises:
        UserError: the folder cannot be read, or is none of tap caches.
    """
    try:
        inside = sorted(root.iterdir()) if root.exists() else []
        folders = [path for path in inside if (path / KEY_FILE).is_file()]
        if inside and not folders:
            raise UserError(
                f"--folder {root}: holds no tap cache (no folder with {KEY_FILE}); give the folder of --cache"
            )
        found = [key for folder in folders if (key := _read(folder))]
    except OSError as error:
        raise UserError(f"--folder {root}: cannot read ({error.strerror or error})") from error
    return sorted(found, key=lambda key: -key.used)


def _read(folder: Path) -> StoredKey | None:
    """None if the folder is removed at this moment."""
    try:
        stats = [file.stat() for file in folder.iterdir()]
        rows = stored_rows(folder)
    except FileNotFoundError:
        return None
    try:
        about = read_json(folder / KEY_FILE)
    except UserError:
        about = {}
    size, used = sum(stat.st_size for stat in stats), max(stat.st_mtime for stat in stats)
    return StoredKey(folder, about if isinstance(about, dict) else {}, rows, size, used, read_uses(folder))


def choose(
    keys: Sequence[StoredKey],
    *,
    names: Iterable[str] = (),
    unused_days: float | None = None,
    most_bytes: int | None = None,
    now: float | None = None,
) -> list[StoredKey]:
    """The keys to remove: those named, those not used for so long, and then those used longest ago until the rest fits.

    Args:
        keys: all keys.
        names: of folders, or the beginning of one; ``all`` = every key.
        unused_days: days without use.
        most_bytes: what the rest may take.
        now: seconds since 1970; default: the present.

    Raises:
        UserError: a name that fits no key or more than one.
    """
    gone = {key.name for name in names for key in _named(keys, name)}
    if unused_days is not None:
        before = (time.time() if now is None else now) - unused_days * DAY
        gone |= {key.name for key in keys if key.used < before}
    if most_bytes is not None:
        kept = sum(key.size for key in keys if key.name not in gone)
        for key in sorted(keys, key=lambda key: key.used):
            if kept > most_bytes and key.name not in gone:
                gone.add(key.name)
                kept -= key.size
    return [key for key in keys if key.name in gone]


def _named(keys: Sequence[StoredKey], name: str) -> Sequence[StoredKey]:
    if name == "all":
        return keys
    found = [key for key in keys if key.name == name] or [key for key in keys if key.name.startswith(name)]
    if len(found) != 1:
        what = "no key has this name" if not found else f"{len(found)} keys begin with this name"
        raise UserError(f"--remove {name}: {what}; `vlkit cache` lists them")
    return found


def remove(keys: Iterable[StoredKey]) -> tuple[list[StoredKey], list[StoredKey]]:
    """Remove the folders of keys that no run uses, and nothing but caches in them.

    Returns:
        The removed ones, and those in use.

    Raises:
        UserError: a folder cannot be removed, or holds other files.
    """
    removed, in_use = [], []
    for key in keys:
        try:
            mark = take(key.folder)
            if mark is None:
                in_use.append(key)
                continue
            with mark:
                _remove(key.folder)
        except FileNotFoundError:
            pass  # somebody else removed it
        except OSError as error:
            raise UserError(f"{key.folder}: cannot remove ({error.strerror or error})") from error
        removed.append(key)
    return removed, in_use


def _remove(folder: Path) -> None:
    """The key goes last: a run that opens the folder meanwhile finds it marked, waits, and begins a new one."""
    for file in folder.iterdir():
        if file.suffix in (".taps", ".index") or file.name == USES_FILE:
            file.unlink()
    (folder / KEY_FILE).unlink()
    try:
        folder.rmdir()
    except OSError:
        if not (folder / KEY_FILE).exists():  # a new run's
            raise
