"""Frames of videos: which are chosen, that both decoders give the same ones, and what becomes of bad files."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from helpers.films import cut, film, image, nearest, scrambled, sound, turned, written
from vlkit.data.images import MediaError
from vlkit.data.video import decode as decoding
from vlkit.data.video import frame_table as tables
from vlkit.data.video import packets
from vlkit.data.video.clip_frames import ClipFrames, choose_frames, duration_of, read_frames, windows
from vlkit.data.video.frame_table import FrameTable, frame_table
from vlkit.data.video.probe import probe

TOLERANCE = 2
"""Levels of 255 between the decoders; they agree to the bit where both use the same version of FFmpeg."""


def table_of(times: list[float], duration: float) -> FrameTable:
    stamps = np.round(np.array(times) * 1000).astype(np.int64)
    key = np.ones(len(times), bool)
    return FrameTable(np.array(times), duration, stamps, key, "stamp", True, True, 160, 120)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("video") / "a.mp4")


# --- Which frames ----------------------------------------------------------------------------------------------------


def test_uniform_is_linspace_over_the_frames() -> None:
    table = table_of([k / 25 for k in range(100)], 4.0)
    for count in (2, 5, 12, 99):
        assert choose_frames(table, count, 0, 4).tolist() == np.rint(np.linspace(0, 99, count) - 1e-3).tolist()
    assert choose_frames(table, 1, 0, 4).tolist() == [50]  # the middle, not the first
    assert choose_frames(table, 100, 0, 4).tolist() == list(range(100))
    assert choose_frames(table, 101, 0, 4).tolist() == list(range(100))


def test_uniform_takes_the_nearest_frame() -> None:
    """2 to 8 s of 25 frames per second: 3.987 s is nearer to 4.0 than to 3.96, and 5.973 s nearer to 5.96."""
    times = [k / 25 for k in range(250)]
    assert [times[k] for k in choose_frames(table_of(times, 10.0), 4, 2, 8)] == [2.0, 4.0, 5.96, 7.96]


def test_uneven_times_are_sampled_by_time() -> None:
    """A second at 10 frames a second, then one frame a second: half of the frames come from either half."""
    times = [k / 10 for k in range(20)] + [2.0, 3.0, 4.0]
    chosen = choose_frames(table_of(times, 5.0), 5, 0, 5)
    assert [times[index] for index in chosen] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_segments_by_centre_and_at_random() -> None:
    table = table_of([k / 25 for k in range(100)], 4.0)
    assert choose_frames(table, 4, 0, 4, "segment").tolist() == [12, 37, 62, 87]
    seen = set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        chosen = choose_frames(table, 4, 0, 4, "segment", generator)
        assert [index // 25 for index in chosen] == [0, 1, 2, 3]  # one in each segment
        seen.add(tuple(chosen))
    assert len(seen) == 20
    again = choose_frames(table, 4, 0, 4, "segment", torch.Generator().manual_seed(3))
    assert tuple(again) in seen


def test_part_of_a_clip() -> None:
    table = table_of([k / 10 for k in range(50)], 5.0)
    assert choose_frames(table, 3, 1.0, 2.0).tolist() == [10, 14, 19]
    assert choose_frames(table, 99, 1.05, 1.35).tolist() == [10, 11, 12, 13]  # the frame on the screen at the start
    assert choose_frames(table, 3, 4.99, 5.0).tolist() == [49]
    assert choose_frames(table, 2, 1.0, 2.0, "segment").tolist() == [12, 17]


@pytest.mark.parametrize("sampling", ["uniform", "segment"])
def test_chosen_frames_are_distinct_ascending_and_inside(sampling: str) -> None:
    rng = np.random.default_rng(0)
    for trial in range(300):
        times = np.cumsum(rng.choice([0.001, 0.04, 1.0], rng.integers(1, 40)))
        times -= times[0]
        duration = float(times[-1]) + 0.04
        start = float(rng.uniform(0, duration * 0.9))
        end, count = float(rng.uniform(start + 1e-3, duration)), int(rng.integers(1, 20))
        generator = torch.Generator().manual_seed(trial) if trial % 2 else None
        table = table_of(times.tolist(), duration)
        chosen = choose_frames(table, count, start, end, sampling, generator)
        there = [
            k for k in range(len(times)) if times[k] < end - 1e-6 and (k + 1 == len(times) or times[k + 1] > start)
        ]
        assert len(chosen) <= count and (np.diff(chosen) > 0).all()
        assert abs(len(chosen) - min(count, max(1, len(there)))) <= 1  # borders within a microsecond
        assert set(chosen.tolist()) <= set(range(max(0, there[0] - 1), there[-1] + 2)) if there else True


def test_windows_cover_a_long_video() -> None:
    assert windows(10, 4) == [(0, 4), (4, 8), (6, 10)]
    assert windows(12, 4) == [(0, 4), (4, 8), (8, 12)]
    assert windows(10, 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert windows(3, 4) == [(0, 3)] and windows(4, 4) == [(0, 4)]
    assert np.allclose(windows(0.3, 0.1), [(0, 0.1), (0.1, 0.2), (0.2, 0.3)])
    for values in ((0, 1, 1), (5, 0, 1), (5, 1, -1), (float("nan"), 1, 1), (float("inf"), 1, 1)):
        with pytest.raises(ValueError):
            windows(*values)


# --- What is read ----------------------------------------------------------------------------------------------------


def test_frames_are_those_asked_for(plain: Path) -> None:
    clip = read_frames(plain, 4)
    assert clip.frames.shape == (4, 144, 160, 3) and clip.frames.dtype == np.uint8
    assert clip.times.tolist() == pytest.approx([0, 1.0, 1.9, 2.9]) and clip.mask.tolist() == [True] * 4
    for frame, number in zip(clip.frames, (0, 10, 19, 29), strict=True):
        assert nearest(frame) == number
    assert clip.images()[1].size == (160, 144)
    assert duration_of(plain) == pytest.approx(3.0)


def test_part_of_a_file(plain: Path) -> None:
    clip = read_frames(plain, 3, start=1.0, end=2.0)
    assert clip.times.tolist() == pytest.approx([1.0, 1.4, 1.9])
    assert [nearest(frame) for frame in clip.frames] == [10, 14, 19]
    assert read_frames(plain, 2, start=2.5, end=99).times[-1] == pytest.approx(2.9)  # stated lengths are rounded
    with pytest.raises(MediaError, match=r"start 3.5 s is after its end \(3.00 s\)"):
        read_frames(plain, 2, start=3.5)
    for start, end in ((2, 1), (-1, 1), (1, 1), (float("nan"), 2)):
        with pytest.raises(ValueError, match="0 <= start < end"):
            read_frames(plain, 2, start=start, end=end)


def test_short_clips_give_fewer_frames_and_a_mask(tmp_path: Path) -> None:
    clip = read_frames(film(tmp_path / "a.mp4", 2), 5)
    assert len(clip.frames) == len(clip.times) == 2 and clip.mask.tolist() == [True, True, False, False, False]
    padded = clip.padded()
    assert padded.shape == (5, 144, 160, 3)
    assert (padded[:2] == clip.frames).all() and (padded[2:] == 0).all()
    single = read_frames(film(tmp_path / "b.mp4", 1), 12)
    assert single.frames.shape[0] == 1 and single.times.tolist() == [0.0] and single.mask.sum() == 1
    assert nearest(single.frames[0]) == 0
    assert duration_of(tmp_path / "b.mp4") == pytest.approx(0.1)


def test_size_shrinks_the_short_side_and_enlarges_nothing(plain: Path) -> None:
    assert read_frames(plain, 2, size=72).frames.shape == (2, 72, 80, 3)
    assert read_frames(plain, 2, size=500).frames.shape == (2, 144, 160, 3)


def test_variable_frame_rate_is_sampled_by_time(tmp_path: Path) -> None:
    stamps = [0, 40, 80, 120, 160, 1000, 2000, 3000]
    path = film(tmp_path / "a.mp4", 8, stamps=stamps)
    clip = read_frames(path, 4)
    assert clip.times.tolist() == pytest.approx([0, 1, 2, 3])
    assert [nearest(frame) for frame in clip.frames] == [0, 5, 6, 7]


def test_wrong_arguments() -> None:
    for options in ({"count": 0}, {"count": 2, "size": 0}, {"count": 2, "sampling": "head"}):
        with pytest.raises(ValueError):
            read_frames("a.mp4", **options)


# --- The same frames from both decoders ------------------------------------------------------------------------------

FAST = {"deadline": "realtime", "cpu-used": "8"}
FILMS: dict[str, Callable[[Path], Path]] = {
    "h264": lambda folder: film(folder / "a.mp4"),
    "h264 in matroska": lambda folder: film(folder / "a.mkv"),
    "full range": lambda folder: film(folder / "a.mp4", full_range=True),
    "bt709": lambda folder: film(folder / "a.mp4", colorspace=1),
    "bt709, full range": lambda folder: film(folder / "a.mp4", colorspace=1, full_range=True),
    "4:4:4, odd size": lambda folder: film(folder / "a.mp4", pixels="yuv444p", width=161, height=143),
    "variable rate": lambda folder: film(folder / "a.mp4", 9, stamps=[0, 40, 200, 240, 700, 760, 1000, 1900, 2000]),
    "two frames": lambda folder: film(folder / "a.mp4", 2),
    "vp9": lambda folder: film(
        folder / "a.webm", codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}
    ),
    "vp8": lambda folder: film(folder / "a.webm", codec="libvpx", options=FAST),
    "motion jpeg": lambda folder: film(folder / "a.mov", codec="mjpeg", pixels="yuvj420p"),
}
REFUSED: dict[str, Callable[[Path], Path]] = {
    "rotated": lambda folder: turned(film(folder / "a.mp4", height=136)),
    "open groups": lambda folder: film(folder / "a.mp4", options={"x264-params": "open-gop=1:keyint=12:bframes=3"}),
    "narrow": lambda folder: film(folder / "a.mp4", width=96, height=96),
    "10 bit": lambda folder: film(folder / "a.mp4", pixels="yuv420p10le"),
    "mpeg-4 with B frames in mp4": lambda folder: film(folder / "a.mp4", codec="mpeg4", options={"bf": "2"}),
    "mpeg-4 with B frames in avi": lambda folder: film(folder / "a.avi", codec="mpeg4", options={"bf": "2"}),
    "transport stream": lambda folder: film(folder / "a.ts", codec="mpeg2video"),
}


@pytest.mark.parametrize("name", FILMS)
def test_both_decoders_give_the_same_frames(name: str, tmp_path: Path) -> None:
    path = FILMS[name](tmp_path)
    table = frame_table(path)
    assert decoding.suits_decord(table, 1)
    every = decoding.decode_by_av(path, table, np.arange(len(table)), None)
    rng = np.random.default_rng(0)
    for size in (1, 1, 2, 3, len(table)):
        chosen = np.sort(rng.choice(len(table), min(size, len(table)), replace=False))
        for decoder in (decoding.decode_by_av, decoding.decode_by_decord):
            frames = decoder(path, table, chosen, None)
            for frame, index in zip(frames, chosen, strict=True):
                assert frame.shape == every[index].shape
                assert np.abs(frame.astype(int) - every[index]).max() <= TOLERANCE, (decoder.__name__, index)


@pytest.mark.parametrize("name", [*FILMS, *REFUSED])
def test_every_frame_is_the_right_one(name: str, tmp_path: Path) -> None:
    """One at a time, as jumps may end at the wrong frame; compared with what was drawn."""
    path = {**FILMS, **REFUSED}[name](tmp_path)
    table = frame_table(path)
    assert decoding.suits_decord(table, 1) == (name in FILMS)
    for index in range(0, len(table), 3):
        (frame,) = decoding.decode(path, table, np.array([index]))
        upright = np.rot90(frame) if name == "rotated" else frame
        assert nearest(upright) == index
        assert np.abs(upright.astype(int) - image(index, upright.shape[1], upright.shape[0])).mean() < 10


def test_rotated_video_is_upright(tmp_path: Path) -> None:
    path = turned(film(tmp_path / "a.mp4"))
    frame = read_frames(path, 1).frames[0]
    assert frame.shape == (160, 144, 3)
    assert frame[5, -5, 0] < 40 and frame[-5, -5, 0] > 215  # turned clockwise: the dark left side is now the top
    assert frame[80, -5, 1] > 215 and frame[80, 5, 1] < 40


def test_av_stands_in_when_decord_refuses(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> list[np.ndarray]:
        raise decoding.Refused("no")

    usual = read_frames(plain, 3).frames
    monkeypatch.setattr(decoding, "decode_by_decord", refuse)
    assert np.abs(read_frames(plain, 3).frames.astype(int) - usual).max() <= TOLERANCE


def test_only_what_is_needed_is_decoded(plain: Path) -> None:
    table = frame_table(plain)  # key frames at 0, 12 and 24
    assert table.key.nonzero()[0].tolist() == [0, 12, 24]
    assert decoding.frames_to_decode(table, np.array([0, 9, 19, 29])) == 1 + 9 + 8 + 6
    assert decoding.frames_to_decode(table, np.array([12])) == 1
    assert decoding.frames_to_decode(table, np.array([3, 4, 14])) == 4 + 1 + 3


# --- Bad files -------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "none.mp4", "missing"),
    "folder": (lambda folder: folder, "a folder"),
    "empty": (lambda folder: written(folder / "a.mp4", b""), "empty file"),
    "web page": (lambda folder: written(folder / "a.mp4", b"<html><body>Not found</body></html>" * 20), "not a video"),
    "sound": (lambda folder: sound(folder / "a.mp4"), "no video stream (only sound)"),
    "no index": (lambda folder: cut(film(folder / "a.mp4"), 0.5), "damaged or truncated"),
    "cut mp4": (lambda folder: cut(film(folder / "a.mp4", options={"movflags": "faststart"}), 0.5), "truncated"),
    "cut webm": (lambda folder: cut(film(folder / "a.webm", 60, "libvpx", options=FAST), 0.4), "truncated"),
    "cut avi": (lambda folder: cut(film(folder / "a.avi", 40, "mpeg4"), 0.5), "truncated"),
    "scrambled": (lambda folder: scrambled(film(folder / "a.mp4", 40, group=50)), "damaged or truncated at"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_at_once(name: str, tmp_path: Path) -> None:
    make, reason = BAD[name]
    path = make(tmp_path)
    began = time.monotonic()
    with pytest.raises(MediaError) as error:
        read_frames(path, 12)
    assert reason in error.value.reason and error.value.path == str(path)
    assert time.monotonic() - began < 10
    with pytest.raises(MediaError):
        probe(path)


def test_frames_before_the_damage_can_be_had(tmp_path: Path) -> None:
    path = scrambled(film(tmp_path / "a.mp4", 40), share=0.2)
    assert [nearest(frame) for frame in read_frames(path, 3, end=1.2).frames] == [0, 5, 11]
    with pytest.raises(MediaError, match="damaged"):
        read_frames(path, 3)


def test_over_long_files_are_refused(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_DECODED", 5)
    with pytest.raises(MediaError, match="over-long: 25 frames must be decoded to get 4"):
        read_frames(plain, 4)
    monkeypatch.undo()
    monkeypatch.setattr(decoding, "DECORD_DECODED", 0)
    monkeypatch.setattr(decoding, "MAX_SECONDS", 0.0)
    with pytest.raises(MediaError, match="takes more than 0 s"):
        read_frames(plain, 4)
    monkeypatch.setattr(packets, "MAX_FRAMES", 10)
    tables._from_packets.cache_clear()
    with pytest.raises(MediaError, match="over-long: more than 10 frames"):
        read_frames(plain, 4)


@pytest.mark.parametrize("codec", [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")])
def test_random_damage_ends_in_frames_or_a_reason(codec: tuple[str, str], tmp_path: Path) -> None:
    """Never another exception, a hang or a black frame."""
    whole = film(tmp_path / codec[0], 20, codec[1], options=FAST if codec[1] == "libvpx" else {}).read_bytes()
    rng = np.random.default_rng(0)
    ends = {"frames": 0, "reason": 0}
    for trial in range(40):
        content = bytearray(whole)
        if trial % 4 == 0:
            content = content[: rng.integers(len(whole))]
        elif trial % 4 == 1:
            for place in rng.integers(0, len(whole), 1 + len(whole) // 2000):
                content[place] = rng.integers(256)
        elif trial % 4 == 2:
            begin = int(rng.integers(len(whole)))
            content[begin : begin + 500] = bytes(len(content[begin : begin + 500]))
        else:
            begin = int(rng.integers(min(len(whole), 3000)))
            content[begin : begin + 8] = rng.bytes(8)
        path = written(tmp_path / f"{trial}-{codec[0]}", bytes(content))
        try:
            clip = read_frames(path, 4)
        except MediaError as error:
            assert error.reason
            ends["reason"] += 1
        else:
            assert (clip.frames.max(axis=(1, 2, 3)) > 60).all()
            ends["frames"] += 1
    assert min(ends.values()) > 0


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 10)
    assert duration_of(path) == pytest.approx(1.0)
    film(path, 20)
    assert duration_of(path) == pytest.approx(2.0)


# --- Workers ---------------------------------------------------------------------------------------------------------


class Clips(torch.utils.data.Dataset):
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(read_frames(self.paths[index], 4).frames)


def test_workers_and_threads_read_the_same(tmp_path: Path) -> None:
    paths = [film(tmp_path / f"{k}.{end}", 10 + k) for k in range(3) for end in ("mp4", "mkv")]
    paths.append(film(tmp_path / "narrow.mp4", width=96, height=96))
    alone = [read_frames(path, 4).frames for path in paths]  # before the processes fork
    loaded = list(DataLoader(Clips(paths), batch_size=None, num_workers=2, multiprocessing_context="fork"))
    with ThreadPoolExecutor(4) as pool:
        threaded: list[ClipFrames] = list(pool.map(lambda path: read_frames(path, 4), paths * 4))
    for index, frames in enumerate(alone):
        assert (loaded[index].numpy() == frames).all()
    for index, clip in enumerate(threaded):
        assert (clip.frames == alone[index % len(paths)]).all()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts files by /proc")
def test_nothing_stays_open(tmp_path: Path) -> None:
    good = [film(tmp_path / "a.mp4"), film(tmp_path / "b.mp4", width=96, height=96)]
    bad = [scrambled(film(tmp_path / "c.mp4", group=50)), cut(film(tmp_path / "d.mp4"), 0.5), sound(tmp_path / "e.mp4")]

    def read_all() -> tuple[int, int]:
        for path in good:
            read_frames(path, 4)
        for path in bad:
            with pytest.raises(MediaError):
                read_frames(path, 4)
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    read_all()
    gc.collect()
    gc.disable()  # nothing may wait for it
    try:
        before = read_all()
        for _ in range(5):
            assert read_all() == before
    finally:
        gc.enable()
