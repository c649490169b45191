"""Frames on disk: ``DIR/frames/<frames>x<size>/<record>/`` with ``00.jpg``, ``01.jpg``, ... and ``clip.json``.

A folder gets its name when it is complete, so an existing folder is complete. ``clip.json`` says which part of which
file the frames come from, their times, and how many bytes each image has.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from vlkit.data.images import MediaError, open_image
from vlkit.data.manifest import Dataset
from vlkit.data.records import Record
from vlkit.data.video.clip_frames import ClipFrames, read_frames
from vlkit.data.video.decode import shrink

FOLDER, CLIP = "frames", "clip.json"
FORMAT = 1
QUALITY = 92
"""Quality of the JPEG files. They keep the full colour resolution, for text and edges that are small at this size."""
_LAYOUT = re.compile(r"([1-9][0-9]*)x([1-9][0-9]*)")


@dataclass(frozen=True)
class Layout:
    """One set of frame folders of a dataset: ``frames`` per clip, short side ``size`` pixels at most."""

    root: Path
    frames: int
    size: int

    @property
    def path(self) -> Path:
        """``root/frames/<frames>x<size>``."""
        return self.root / FOLDER / f"{self.frames}x{self.size}"

    def folder(self, record: Record) -> Path:
        """Folder of a record's frames."""
        return self.path / folder_name(record["id"])

    def made(self) -> frozenset[str]:
        """Names of the existing folders."""
        try:
            return frozenset(entry.name for entry in os.scandir(self.path) if entry.is_dir())
        except OSError:
            return frozenset()


def layouts(root: str | Path) -> list[Layout]:
    """The sets of frame folders that a dataset has, by frames and size."""
    try:
        names = os.listdir(Path(root) / FOLDER)
    except OSError:
        return []
    found = (_LAYOUT.fullmatch(name) for name in names)
    return [Layout(Path(root), *pair) for pair in sorted((int(m[1]), int(m[2])) for m in found if m)]


def folder_name(record_id: str) -> str:
    """A record's id as one file name: unusual characters as %XX; a name that is then too long ends in a hash."""
    name = quote(record_id, safe=" ")
    name = "%2E" + name[1:] if name.startswith(".") else name
    if len(name) <= 200:
        return name
    return f"{name[:160]}-{hashlib.sha256(record_id.encode()).hexdigest()[:32]}"


def description(dataset: Dataset, record: Record, layout: Layout) -> dict[str, Any]:
    """Expected content of ``clip.json`` for a record, without the size of the video file."""
    part = {"start": record.get("start"), "end": record.get("end")}
    made = {"frames": layout.frames, "size": layout.size, "sampling": "uniform", "quality": QUALITY}
    return {"format": FORMAT, "id": record["id"], "video": record["video"], **part, **made}


def write_folder(folder: Path, video: Path, described: dict[str, Any], temporary: Path) -> None:
    """Decode a clip and write its folder atomically; ``temporary`` is a folder on the same disk for partial files.

    Raises:
        MediaError: the video cannot be used.
        OSError: cannot write.
    """
    clip = read_frames(
        video, described["frames"], described["start"], described["end"], "uniform", size=described["size"]
    )
    part = temporary / f"{folder.name}.{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    sizes = []
    for number, image in enumerate(clip.images()):
        path = part / f"{number:02d}.jpg"
        image.save(path, quality=QUALITY, subsampling=0)
        sizes.append(path.stat().st_size)
    content = {**described, "video_bytes": video.stat().st_size, "times": clip.times.tolist(), "bytes": sizes}
    with open(part / CLIP, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)  # of other frames, or damaged
    os.replace(part, folder)


def folder_problem(folder: Path, described: dict[str, Any], video: Path | None) -> str | None:
    """Say why the frames in a folder do not belong to a record, without opening an image; None if they do.

    Args:
        video: the source file, compared by its size; None or a missing file is not compared.
    """
    try:
        content = json.loads((folder / CLIP).read_text(encoding="utf-8"))
        sizes, times = list(content["bytes"]), list(content["times"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{CLIP} is missing or damaged"
    differing = [name for name in described if content.get(name) != described[name]]
    if differing:
        return f'made with another "{differing[0]}" ({content.get(differing[0])})'
    if video is not None and video.exists() and video.stat().st_size != content.get("video_bytes"):
        return f"{described['video']} has changed since"
    if not sizes or len(sizes) != len(times) or len(sizes) > described["frames"]:
        return f"{CLIP} is damaged (its lists do not fit)"
    for number, size in enumerate(sizes):
        path = folder / f"{number:02d}.jpg"
        if not path.is_file() or path.stat().st_size != size:
            return f"{path.name} is missing or truncated"
    return None


def read_folder(folder: Path, count: int, size: int | None = None) -> ClipFrames:
    """The frames in a folder, downscaled to the short side ``size``.

    Raises:
        MediaError: an image is damaged or the times are missing; the path is that of the file.
    """
    path = folder / CLIP
    try:
        times = np.array(json.loads(path.read_text(encoding="utf-8"))["times"], np.float64)
    except (OSError, ValueError, KeyError, TypeError):
        raise MediaError(path, "missing or damaged") from None
    images: list[Image.Image] = [open_image(folder / f"{number:02d}.jpg") for number in range(len(times))]
    if not images or len({image.size for image in images}) > 1:
        raise MediaError(path, "its images are not of one size")
    return ClipFrames(np.stack([shrink(np.asarray(image), size) for image in images]), times, count)
