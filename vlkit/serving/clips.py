"""Videos that models search by their moments: windows of each file, and cutting one out to play it."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from vlkit.cli.show import visible
from vlkit.data.images import MediaError
from vlkit.data.video.probe import open_video
from vlkit.drawn.videos import find_encoder
from vlkit.files import whole_file
from vlkit.index.files import Item
from vlkit.index.videos import VideoWindows, Window, video_files
from vlkit.serving.library import Library, Medium

WINDOW, STRIDE = 8.0, 4.0
"""Seconds of a moment, and between the starts of two."""
SIDE = 480
"""Longer side of what is played, in pixels."""


@dataclass(frozen=True)
class FoundClip:
    """A search result: similarity, the path in the folder as it can be shown, the file, seconds from start to end."""

    score: float
    name: str
    path: Path
    start: float
    end: float


def videos_in(folder: Path) -> Medium:
    """The moments of the video files below ``folder``, as a library's medium."""
    cut = VideoWindows(folder, WINDOW, STRIDE)

    def find() -> tuple[list[Item], list[MediaError]]:
        items, bad = [], []
        for path in video_files(folder):
            try:
                items += cut.items_of(path)
            except MediaError as error:
                bad.append(error)
        return items, bad

    return Medium(
        folder,
        find=find,
        read=lambda pipeline, item: pipeline.embedder.reader(cut.clip(item)),
        embed=lambda pipeline, frames: pipeline.embed_frames(frames),
        digest=cut.digest,
    )


def search_clips(library: Library, model: str, queries: np.ndarray, k: int) -> list[list[FoundClip]]:
    """The k nearest moments of each query (float32 [Q, E]), best first; errors as :meth:`Library.search`."""
    return [
        [
            FoundClip(hit.score, visible(where.video), library.folder / where.video, where.start, where.end)
            for hit in hits
            for where in [Window.of(hit.item)]
        ]
        for hits in library.search(model, queries, k)
    ]


def still_of(clip: FoundClip) -> Image.Image:
    """The picture in the middle of a moment.

    Raises:
        MediaError: the file is gone or damaged meanwhile.
    """
    middle = (clip.start + clip.end) / 2
    with open_video(clip.path) as (container, stream):
        try:
            frame = next(_frames(container, stream, middle, clip.end + 1))
            return frame.to_image(**_size(frame))
        except (StopIteration, av.FFmpegError):
            raise MediaError(clip.path, "damaged or truncated") from None


def cut_clip(clip: FoundClip, output: Path) -> None:
    """Write a moment as a small MP4 that browsers play, without sound.

    Raises:
        MediaError: the file is gone or damaged meanwhile.
    """
    encoder = find_encoder()
    with whole_file(output) as part, open_video(clip.path) as (source, stream):
        rate = min(Fraction(30), Fraction(stream.average_rate or 25).limit_denominator(1000))
        with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as target:
            out, due, written = None, clip.start, 0
            try:
                for frame in _frames(source, stream, clip.start, clip.end):
                    if frame.time < due - 1e-3:
                        continue
                    due += 1 / float(rate)
                    if out is None:
                        out = target.add_stream(encoder, rate=rate, options={"preset": "veryfast"})
                        out.width, out.height, out.pix_fmt = *_size(frame).values(), "yuv420p"
                    picture = frame.reformat(out.width, out.height, "yuv420p")
                    picture.pts, picture.time_base, written = written, 1 / rate, written + 1
                    target.mux(out.encode(picture))
            except av.FFmpegError as error:
                raise MediaError(clip.path, f"damaged or truncated ({error.strerror or error})") from None
            if out is None:
                raise MediaError(clip.path, "damaged or truncated (no frame can be decoded)")
            target.mux(out.encode())


def _frames(container: Any, stream: Any, start: float, end: float) -> Any:
    """Decoded frames from ``start`` on, up to ``end``, in seconds; seeks to the key frame before."""
    if start > 0 and stream.time_base:
        container.seek(int(start / stream.time_base), stream=stream, backward=True)
    for frame in container.decode(stream):
        if frame.time is None or frame.time + 1e-3 < start:
            continue
        if frame.time >= end:
            return
        yield frame


def _size(frame: av.VideoFrame) -> dict[str, int]:
    """Even width and height of at most :data:`SIDE` pixels."""
    scale = min(1.0, SIDE / max(frame.width, frame.height))
    return {side: max(2, round(getattr(frame, side) * scale / 2) * 2) for side in ("width", "height")}
