"""``vlkit cache``: list the taps that training stored on disk, and remove those of no use.

vlkit cache                                  # every key: base, layers, rows, size, hit rate, last use
vlkit cache --unused_days 30                 # remove keys that no run read for 30 days
vlkit cache --max_size 20GB --dry_run true   # which keys would go, used longest ago first
vlkit cache --remove image-9dd7 text-8942    # by name, or its beginning; all = every key
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlkit.byte_sizes import parse_size, size_text
from vlkit.cli.config import run
from vlkit.cli.show import Console, Table
from vlkit.errors import UserError
from vlkit.files import write_json
from vlkit.tap_cache.keys import DAY, StoredKey, choose, remove, stored_keys
from vlkit.tap_cache.usage import tap_folder


@dataclass
class Config:
    """List cached taps (`--cache` of training), and remove those of no use; taps are computed again when needed."""

    folder: Path | None = None
    """Folder that `--cache` named; default: the one of `--cache true`."""
    remove: list[str] = field(default_factory=list)
    """Names of keys to remove, or their beginnings; all = every key."""
    unused_days: float | None = None
    """Remove keys that no run used for so many days."""
    max_size: str | None = None
    """Remove keys, those used longest ago first, until the rest takes no more than this: 20GB, 512MB."""
    dry_run: bool = False
    """Say what would be removed, and remove nothing."""
    json: Path | None = None
    """Also write the keys that are left to this JSON file: objects with name, folder, base, taps, rows, bytes, used,
    read, computed, hit_rate."""

    def __post_init__(self) -> None:
        if self.unused_days is not None and not 0 <= self.unused_days < math.inf:
            raise UserError(f"--unused_days {self.unused_days}: must be 0 or more, and finite")


def main(config: Config) -> None:
    """List the keys, and remove those asked for."""
    most = None if config.max_size is None else parse_size("--max_size", config.max_size)
    root, console = config.folder or tap_folder(), Console()
    keys = stored_keys(root)
    chosen = choose(keys, names=config.remove, unused_days=config.unused_days, most_bytes=most)
    if config.dry_run:
        console.print(f"would remove {_sum(chosen)}" + "".join(f"\n  {key.name}" for key in chosen))
    elif chosen:
        removed, in_use = remove(chosen)
        gone = {key.name for key in removed}
        keys = [key for key in keys if key.name not in gone]
        console.print(f"removed {_sum(removed)}")
        for key in in_use:
            console.print(f"{key.name}: a run uses it; not removed")
    if config.json:
        write_json(config.json, [key.to_dict() for key in keys])
    if keys:
        console.print(_table(keys))
    free = f"; {size_text(shutil.disk_usage(root).free)} free" if root.exists() else ""
    console.print(f"{root}: {_sum(keys)}{free}")


def _table(keys: Sequence[StoredKey]) -> Table:
    table = Table("key", "base", "taps", "rows", "size", "hit rate", "last used")
    for key in keys:
        rate = "-" if key.uses.hit_rate is None else f"{100 * key.uses.hit_rate:.1f} %"
        table.add_row(
            *(key.name, key.base, key.taps, f"{key.rows:,}", size_text(key.size), rate),
            _ago(time.time() - key.used),
        )
    return table


def _sum(keys: Sequence[StoredKey]) -> str:
    return f"{len(keys)} key{'s' * (len(keys) != 1)}, {size_text(sum(key.size for key in keys))}"


def _ago(seconds: float) -> str:
    """``3 days ago``, ``2 hours ago``, ``4 minutes ago``."""
    for unit, name in ((DAY, "day"), (3600, "hour")):
        if seconds >= unit:
            count = int(seconds // unit)
            return f"{count} {name}{'s' * (count != 1)} ago"
    return f"{max(0, int(seconds // 60))} minutes ago"


if __name__ == "__main__":
    run(main, Config)
