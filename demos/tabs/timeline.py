"""HTML of a video over time: frames in a strip, the saliency curve, and moments; a click plays from there."""

from __future__ import annotations

import base64
from pathlib import Path

from PIL import Image

from tabs.common import as_html
from vlkit.data.video.timed_frames import frames_at
from vlkit.files import whole_file
from vlkit.tasks.moment_retrieval.evaluate import Found
from vlkit.tasks.moment_retrieval.pipeline import clip_scores

WIDTH, HEIGHT = 600, 90
FRAMES, SIDE, GAP = 8, 96, 2
"""Frames of a strip, pixels of their short side, and pixels between them."""
LAYOUT = (FRAMES, SIDE, GAP)
"""What a stored strip depends on besides its video."""


def timeline(found: Found, moments: list[tuple[float, float, float]], title: str = "Moments, best first") -> str:
    """HTML: the saliency curve over time with the moments as bars, and a list of them; a click plays from there.

    The element says the length of the video and the peak of the curve in seconds (``data-seconds``, ``data-peak``).
    """
    length = max(found.timeline.duration, 1e-6)
    place = lambda time: WIDTH * time / length  # noqa: E731
    bars = "".join(
        f'<rect x="{place(start):.1f}" y="0" width="{place(end - start):.1f}" height="{HEIGHT}" '
        f'fill="var(--primary-500)" opacity="{0.15 + 0.35 * score:.2f}"/>'
        for start, end, score in moments
    )
    rows = clip_scores(found)
    low, high = min(row[2] for row in rows), max(row[2] for row in rows)
    heights = [HEIGHT - 6 - (HEIGHT - 12) * (score - low) / max(high - low, 1e-9) for _, _, score in rows]
    peak = max(rows, key=lambda row: row[2])
    curve = " ".join(f"{place((s + e) / 2):.1f},{y:.1f}" for (s, e, _), y in zip(rows, heights, strict=True))
    listed = "".join(
        f"<li><button type='button' onclick=\"{play(f'{start:.2f}')}\">{clock(start)} to {clock(end)}</button> "
        f'<span class="value">{score:.2f}</span></li>'
        for start, end, score in moments
    )
    click = play(f"event.offsetX / this.clientWidth * {length:.3f}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" height="{HEIGHT}" role="img" preserveAspectRatio="none" '
        f'data-seconds="{length:.2f}" data-peak="{(peak[0] + peak[1]) / 2:.2f}" '
        f'style="cursor:pointer;border:1px solid var(--border-color-primary)" onclick="{click}" '
        f'aria-label="Saliency over {clock(length)}; a click plays from there">{bars}'
        f'<polyline points="{curve}" fill="none" stroke="var(--body-text-color)" stroke-width="1.5"/></svg>'
        f'<div class="axis" aria-hidden="true"><span>{clock(0)}</span><span>{clock(length / 2)}</span>'
        f"<span>{clock(length)}</span></div>"
        '<p class="lead">The curve is the saliency of each clip; a click plays from there.</p>'
        f"<p><b>{as_html(title)}</b></p><ol>{listed}</ol>"
    )


def play(seconds: str) -> str:
    """JavaScript that plays the video from a time."""
    return f"const v=document.querySelector('#moments-video video');if(v){{v.currentTime={seconds};v.play()}}"


def clock(seconds: float) -> str:
    """``1:04.0``: minutes and seconds."""
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"


def strip(jpeg: bytes, seconds: float) -> str:
    """HTML of a film strip (:func:`write_strip`) as wide as the timeline below it."""
    click = play(f"event.offsetX / this.clientWidth * {seconds:.3f}")
    return (
        f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" alt="Frames of the video, from its start '
        f'to its end" style="display:block;width:100%;cursor:pointer" onclick="{click}">'
    )


def write_strip(video: str | Path, seconds: float, path: Path) -> None:
    """Write frames at regular times, side by side, as JPEG.

    Raises:
        vlkit.data.images.MediaError: the video cannot be read.
    """
    times = [(number + 0.5) * seconds / FRAMES for number in range(FRAMES)]
    frames = [Image.fromarray(frame) for frame in frames_at(video, times, SIDE)]
    width, height = frames[0].size
    joined = Image.new("RGB", (FRAMES * (width + GAP) - GAP, height), "gray")
    for number, frame in enumerate(frames):
        joined.paste(frame, (number * (width + GAP), 0))
    with whole_file(path) as temporary:
        joined.save(temporary, "JPEG", quality=80)
