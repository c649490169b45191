"""Video files that are healthy but unusual: orientations, edit lists, wrong headers, several streams, odd names."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from helpers.films import cut, edited, film, image, nearest, turned, written
from vlkit.data.images import MediaError
from vlkit.data.video.clip_frames import duration_of, read_frames, shown_frames
from vlkit.data.video.probe import probe
from vlkit.data.video.write import write_mp4


def numbers(path: Path, count: int = 5, start: float | None = None, end: float | None = None) -> list[int]:
    return [nearest(frame) for frame in read_frames(path, count, start, end).frames]


# --- Orientation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "matrix",
    [m for m in itertools.product((-1, 0, 1), repeat=4) if abs(m[0] * m[3] - m[1] * m[2]) == 1 and m.count(0) == 2],
)
def test_all_eight_orientations_are_upright(matrix: tuple[int, int, int, int], tmp_path: Path) -> None:
    path = turned(film(tmp_path / "a.mp4", 3), matrix)
    a, b, c, d = matrix
    coded, (height, width) = image(2, 160, 144), (144, 160)
    expected = np.zeros((width, height, 3) if a == 0 else (height, width, 3), int)
    for y, x in itertools.product(range(height), range(width)):
        # Negative places count from the far side, so the translation of the matrix is left out.
        expected[(b * x + d * y) - (b + d < 0), (a * x + c * y) - (a + c < 0)] = coded[y, x]
    frame = read_frames(path, 3).frames[2]
    assert frame.shape == expected.shape
    assert np.abs(frame - expected).mean() < 10
    (_, played), *_ = shown_frames(path, 0.25, 0.3, 10)
    assert np.abs(played - expected).mean() < 10


def test_orientation_in_the_codec_is_taken(tmp_path: Path) -> None:
    """H.264 can say it itself, in a message beside the frames."""
    source, path = film(tmp_path / "a.mp4", 3), tmp_path / "b.mp4"
    filters = "h264_metadata=display_orientation=insert:rotate=90:flip=horizontal"
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        metadata = av.bitstream.BitStreamFilterContext(filters, old.streams.video[0])
        for packet in old.demux(video=0):
            for changed in metadata.filter(packet if packet.size else None):
                changed.stream = stream
                new.mux(changed)
    frame, coded = read_frames(path, 3).frames[2], image(2, 160, 144)
    options = [coded.swapaxes(0, 1), coded.swapaxes(0, 1)[::-1, ::-1]]
    assert min(np.abs(frame.astype(int) - option).mean() for option in options if option.shape == frame.shape) < 10


# --- Edit lists, headers, streams ------------------------------------------------------------------------------------


def test_edit_lists_hide_frames(tmp_path: Path) -> None:
    """Phones trim videos this way: what is left is a whole video, however little it is."""
    path = edited(film(tmp_path / "a.mp4"), 0.8, begin=2048)
    assert duration_of(path) == pytest.approx(0.8) and numbers(path, 3) == [0, 3, 7]
    path = edited(film(tmp_path / "b.mp4"), 1.5, begin=2048 + 15 * 1024)
    assert duration_of(path) == pytest.approx(1.5) and numbers(path) == [15, 18, 22, 25, 29]
    assert probe(path).frames == 15


def matroska_duration(path: Path, seconds: float) -> Path:
    content = bytearray(path.read_bytes())
    place = content.index(b"\x44\x89\x88") + 3
    content[place : place + 8] = struct.pack(">d", 1000 * seconds)
    return written(path, bytes(content))


def avi_frames(path: Path, frames: int) -> Path:
    content = bytearray(path.read_bytes())
    for place in (content.index(b"avih") + 24, content.index(b"strh") + 40):
        content[place : place + 4] = struct.pack("<I", frames)
    return written(path, bytes(content))


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: matroska_duration(film(folder / "a.mkv"), 20),
        lambda folder: matroska_duration(film(folder / "a.mkv"), 0.5),
        lambda folder: avi_frames(film(folder / "a.avi", codec="mpeg4"), 90),
        lambda folder: avi_frames(film(folder / "a.avi", codec="mpeg4"), 3),
    ],
)
def test_wrong_headers_of_whole_files_do_no_harm(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    assert duration_of(path) == pytest.approx(3.0) and numbers(path) == [0, 7, 14, 22, 29]
    assert probe(path).frames == 30
    with pytest.raises(MediaError, match="truncated"):
        duration_of(cut(avi_frames(film(tmp_path / "b.avi", codec="mpeg4"), 30), 0.5))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_still_images_and_sound_beside_the_video(suffix: str, tmp_path: Path) -> None:
    """A still image comes first, the sound is twice as long as the video."""
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        still, video = container.add_stream("mjpeg", rate=10), container.add_stream("libx264", rate=10)
        sound = container.add_stream("mp3", rate=44100)
        still.width, still.height, still.pix_fmt = 320, 200, "yuvj420p"
        video.width, video.height, video.pix_fmt = 160, 144, "yuv420p"
        for stream, frames in ((still, 1), (video, 30)):
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(image(number, stream.width, stream.height), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        for number in range(6 * 44100 // 1152):
            samples = av.AudioFrame.from_ndarray(np.zeros((2, 1152), np.float32), format="fltp", layout="stereo")
            samples.sample_rate, samples.pts = 44100, 1152 * number
            container.mux(sound.encode(samples))
        container.mux(sound.encode())
    assert duration_of(path) == pytest.approx(3.0) and numbers(path) == [0, 7, 14, 22, 29]
    assert (probe(path).width, probe(path).frames) == (160, 30)


@pytest.mark.parametrize("bframes", ["0", "3"])
def test_a_recording_that_begins_in_the_middle(bframes: str, tmp_path: Path) -> None:
    """The first key frame is number 12; what leans on frames before it cannot be decoded."""
    path = film(tmp_path / "a.ts", options={"x264-params": f"open-gop=1:keyint=12:bframes={bframes}"})
    content = path.read_bytes()
    begin = len(content) // 4 // 188 * 188
    path = written(tmp_path / "b.ts", content[: 3 * 188] + content[begin:])
    frames = probe(path).frames
    first, last = numbers(path, 2)
    assert (first, last) == (30 - frames, 29) and first >= 12
    assert duration_of(path) == pytest.approx(frames / 10)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "libx264"), ("a.vob", "mpeg2video")])
def test_check_and_training_are_of_one_mind_about_damage(name: str, codec: str, tmp_path: Path) -> None:
    whole = film(tmp_path / name, 40, codec).read_bytes()
    rng, verdicts = np.random.default_rng(0), []
    for trial in range(8):
        content = bytearray(whole)
        begin = int(rng.integers(len(whole) // 4, len(whole) * 3 // 4))
        content[begin : begin + 30 * 4**trial // 16] = bytes(len(content[begin : begin + 30 * 4**trial // 16]))
        path = written(tmp_path / f"{trial}-{name}", bytes(content))
        verdicts.append([_is_fine(probe, path), *(_is_fine(read_frames, path, count) for count in (2, 12, 99))])
    assert all(all(verdict) for verdict in verdicts if verdict[0])
    assert not any(verdict[3] for verdict in verdicts if not verdict[0])  # asked for every frame
    assert {verdict[0] for verdict in verdicts} == {True, False}


def _is_fine(function: Callable[..., object], *arguments: object) -> bool:
    try:
        function(*arguments)
    except MediaError:
        return False
    return True


# --- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["12:30.mp4", "http:a.mp4", "file:a.mp4", "subfile,,start,0,end,9,,:a.mp4", "concat:a|b.mp4", "%03d.mp4", "-i.mp4"],
)
def test_names_are_not_taken_for_protocols(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_mp4(name, ((number, image(number, 160, 144)) for number in range(10)), 10) == 10
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    path = Path(name)
    assert duration_of(path) == pytest.approx(1.0) and numbers(path, 3) == [0, 4, 9] and probe(path).frames == 10
    assert [number for number, _ in shown_frames(name, 0.2, 0.5, 10)] == [0, 1, 2]
    written(path, b"nothing")
    with pytest.raises(MediaError) as error:
        duration_of(path)
    assert error.value.path == name  # as the user wrote it
