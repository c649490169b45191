"""Time stamps that repeat, are missing, go back or start again: duration and frames must be those of the video."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.films import FPS, film, flv_restamped, nearest, packed, restamped, written
from vlkit.data.video.clip_frames import duration_of, read_frames
from vlkit.data.video.probe import probe
from vlkit.data.video.time_axis import time_axis

VP8 = {"deadline": "realtime", "cpu-used": "8", "b": "4000000"}


@pytest.mark.parametrize(
    ("stamps", "times", "duration"),
    [
        ([0, 40, 80], [0, 0.04, 0.08], 0.12),
        ([7, 47, 87], [0, 0.04, 0.08], 0.12),  # the first is not 0
        ([-80, -40, 0], [0, 0.04, 0.08], 0.12),
        ([0, 40, 40, 120], [0, 0.04, 0.08, 0.12], 0.16),
        ([0, 0, 80, 80], [0, 0.04, 0.08, 0.12], 0.16),
        ([0, 40, 40], [0, 0.04, 0.08], 0.12),  # no later stamp
        ([0, 40, 110, 80, 160], [0, 0.04, 0.11, 0.135, 0.16], 0.2),
        ([5000, 5040, 0, 40], [0, 0.04, 0.08, 0.12], 0.16),  # it starts again
        ([0, 5000, 5040], [0, 5, 5.04], 7.56),  # a frame that stays for long
        ([None, None, None], [0, 0.1, 0.2], 0.3),
        ([0, 0, 0], [0, 0.1, 0.2], 0.3),
        ([None, 0, None, None, 600], [0, 0.2, 0.4, 0.6, 0.8], 1.0),  # measured, not stated
        ([3], [0], 0.1),
    ],
)
def test_seconds_ascend_whatever_the_stamps(stamps: list[int | None], times: list[float], duration: float) -> None:
    found, end = time_axis(stamps, 0.001, step=0.1)
    assert found.tolist() == pytest.approx(times, abs=1e-9) and (np.diff(found) > 0).all()
    assert end == pytest.approx(duration)


def test_lengths_that_cannot_be_are_not_stated() -> None:
    assert time_axis([0, 0], 0.001, step=0.001)[1] == pytest.approx(0.08)  # 25 frames per second
    assert time_axis([0, 100], 0.001, last=0.001)[1] == pytest.approx(0.2)


@functools.cache
def vp8_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return film(Path(folder) / "a.webm", codec="libvpx", options=VP8).read_bytes()


def vp8(folder: Path) -> Path:
    return written(folder / "source.webm", vp8_bytes())


# Each is 30 frames, 10 per second; the stamps of the files say something else, or nothing.
FILMS: dict[str, Callable[[Path], Path]] = {
    "webm, a frame late": lambda f: restamped(vp8(f), f / "a.webm", lambda n, p, d: (p - 100 * (n == 15),) * 2),
    "webm, a frame early": lambda f: restamped(vp8(f), f / "a.webm", lambda n, p, d: (p + 100 * (n == 15),) * 2),
    "webm, a key frame": lambda f: restamped(vp8(f), f / "a.webm", lambda n, p, d: (p - 100 * (n == 12),) * 2),
    "webm, pairs": lambda f: restamped(vp8(f), f / "a.webm", lambda n, p, d: (p // 200 * 200,) * 2),
    "mkv with B-frames": lambda f: restamped(
        film(f / "source.mkv"), f / "a.mkv", lambda n, p, d: (p - 100 * (n == 13), d)
    ),
    "mp4 with B-frames": lambda f: restamped(
        film(f / "source.mp4"), f / "a.mp4", lambda n, p, d: (p - 1024 * (n == 13), d)
    ),
    "flv": lambda f: restamped(film(f / "source.flv"), f / "a.flv", lambda n, p, d: (p - 100 * (n == 13), d)),
    "flv, all the same": lambda f: restamped(film(f / "source.flv"), f / "a.flv", lambda n, p, d: (0, 0)),
    "flv, order of decoding": lambda f: restamped(film(f / "source.flv"), f / "a.flv", lambda n, p, d: (d, d)),
    "flv, back and forth": lambda f: flv_restamped(
        film(f / "a.flv", options={"bf": "0"}), lambda n, t: t + 110 * (n == 15)
    ),
    "flv, starts again": lambda f: flv_restamped(film(f / "a.flv"), lambda n, t: t - 1200 * (n >= 12)),
    "mpeg-ps, h264": lambda f: film(f / "a.vob"),
    "mpeg-ps, mpeg-2": lambda f: film(f / "a.mpg", codec="mpeg2video", options={"bf": "2"}),
    "raw h264": lambda f: film(f / "a.h264"),
    "raw h264 without B-frames": lambda f: film(f / "a.h264", options={"bf": "0"}),
    "raw hevc": lambda f: film(f / "a.hevc", codec="libx265", options={"x265-params": "log-level=none"}),
    "raw mpeg-2": lambda f: film(f / "a.m2v", codec="mpeg2video", options={"bf": "2"}),
    "avi, h264 with B-frames": lambda f: film(f / "a.avi"),
    "avi, mpeg-4 with B-frames": lambda f: film(f / "a.avi", codec="mpeg4", options={"bf": "2"}),
    "avi, packed B-frames": lambda f: packed(f / "a.avi"),
}


@pytest.mark.parametrize("name", FILMS)
def test_time_and_frames_are_right(name: str, tmp_path: Path) -> None:
    path = FILMS[name](tmp_path)
    assert duration_of(path) == pytest.approx(3.0, abs=0.02)
    whole, part = read_frames(path, 5), read_frames(path, 3, 1.0, 2.0)
    assert whole.times.tolist() == pytest.approx([0, 0.7, 1.4, 2.2, 2.9], abs=0.011)
    assert part.times.tolist() == pytest.approx([1.0, 1.4, 1.9], abs=0.011)
    assert [nearest(frame) for frame in [*whole.frames, *part.frames]] == [0, 7, 14, 22, 29, 10, 14, 19]
    assert [nearest(frame) for frame in read_frames(path, 30).frames] == list(range(30))
    assert probe(path).frames == 30  # check.py is of the same mind


def test_stamps_without_any_rate_give_25_frames_per_second(tmp_path: Path) -> None:
    path = restamped(vp8(tmp_path), tmp_path / "a.webm", lambda n, p, d: (0, 0))
    assert duration_of(path) == pytest.approx(30 / 25)
    assert [nearest(frame) for frame in read_frames(path, 3).frames] == [0, 14, 29]


@pytest.mark.parametrize(("suffix", "codec"), [("vob", "mpeg2video"), ("h264", "libx264"), ("ts", "libx264")])
def test_joined_files_are_as_long_as_both(suffix: str, codec: str, tmp_path: Path) -> None:
    content = film(tmp_path / f"a.{suffix}", codec=codec).read_bytes()
    path = written(tmp_path / f"both.{suffix}", content + content)
    assert duration_of(path) == pytest.approx(6.0, abs=0.11)  # of a transport stream the frame at the joint is lost
    assert [nearest(frame) for frame in read_frames(path, 2, 0.75, 4.85).frames] == [7, 18]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "flv", "avi", "h264", "ts", "vob"])
@pytest.mark.parametrize("frames", [1, 2])
def test_one_and_two_frames(suffix: str, frames: int, tmp_path: Path) -> None:
    path = film(tmp_path / f"a.{suffix}", frames)
    assert duration_of(path) == pytest.approx(frames / FPS)
    assert [nearest(frame) for frame in read_frames(path, 4).frames] == list(range(frames))
