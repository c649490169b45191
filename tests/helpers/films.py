"""Short video files for the tests: every frame can be told from the others, whatever codec and container."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS = 10


def image(number: int, width: int, height: int) -> np.ndarray:
    """Frame ``number``: a ramp of colours that grows bluer, and a red square that moves; uint8 [H, W, 3]."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    pixels[..., 1] = np.linspace(255, 0, height).astype(np.uint8)[:, None]
    pixels[..., 2] = min(255, 4 * number)
    left = 2 * number % (width - 32)
    pixels[8:40, left : left + 32] = (255, 30, 30)
    return pixels


def nearest(frame: np.ndarray, frames: int = 40) -> int:
    """Number of the drawn frame that a decoded frame is most like."""
    height, width = frame.shape[:2]
    distances = [np.abs(frame.astype(int) - image(number, width, height)).mean() for number in range(frames)]
    return int(np.argmin(distances))


def film(
    path: Path,
    frames: int = 30,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    *,
    width: int = 160,
    height: int = 144,
    group: int = 12,
    options: dict[str, str] | None = None,
    full_range: bool = False,
    colorspace: int | None = None,
    stamps: Sequence[int] | None = None,
) -> Path:
    """Write a video of ``frames`` at 10 frames a second, or at ``stamps`` in milliseconds; give its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = {"dst_color_range": 2 if full_range else None, "dst_colorspace": colorspace}
    with av.open(str(path), "w") as container:
        # No key frame at changes of scene, so that groups have the stated length.
        stream = container.add_stream(codec, rate=FPS, options={"sc_threshold": "0", **(options or {})})
        if codec.startswith("mpeg"):
            stream.bit_rate = 4_000_000
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, pixels, group
        if full_range:
            stream.codec_context.color_range = 2
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        if stamps is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(image(number, width, height), format="rgb24")
            frame = frame.reformat(format=pixels, **{key: value for key, value in colours.items() if value is not None})
            if stamps is not None:
                frame.pts, frame.time_base = stamps[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


QUARTER = (0, 1, -1, 0)
"""Display matrix (a, b, c, d) of a quarter turn clockwise: the pixel (x, y) is shown at (a x + c y, b x + d y)."""


def turned(path: Path, matrix: tuple[int, int, int, int] = QUARTER) -> Path:
    """Write a display matrix into an MP4 file."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44  # after the fields of version 0
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return written(path, bytes(content))


def restamped(source: Path, target: Path, change: Callable[[int, int, int], tuple[int, int]]) -> Path:
    """Copy a video; ``change`` gives packet n other time stamps (pts, dts), in units of the source."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(packet for packet in old.demux(video=0) if packet.size):
            packet.stream = stream
            packet.pts, packet.dts = change(number, packet.pts, packet.dts)
            new.mux(packet)
    return target


def flv_restamped(path: Path, change: Callable[[int, int], int]) -> Path:
    """Write other time stamps, in milliseconds, into the frames of an FLV file; writers of files refuse some."""
    content, place, number = bytearray(path.read_bytes()), 13, 0
    while place < len(content):
        length = int.from_bytes(content[place + 1 : place + 4], "big")
        if content[place] == 9 and content[place + 12] == 1:  # a frame, no header of the codec
            old = int.from_bytes(content[place + 4 : place + 7], "big")
            content[place + 4 : place + 7] = change(number, old).to_bytes(3, "big")
            number += 1
        place += 11 + length + 4
    return written(path, bytes(content))


def packed(path: Path, frames: int = 30) -> Path:
    """MPEG-4 in AVI as DivX wrote it: a B-frame lies in the packet of the frame before, an empty packet follows."""
    source = film(path.with_suffix(".source.avi"), frames, "mpeg4", options={"bf": "1", "b_strategy": "0"})
    start = b"\0\0\1\xb6"  # of a frame; its type is in the next two bits
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        coded = [bytes(packet) for packet in old.demux(video=0) if packet.size]
        for number in reversed(range(1, frames)):
            if coded[number][coded[number].index(start) + 4] >> 6 == 2:
                coded[number - 1] += coded[number]
                coded[number] = start + b"\x50\0\x7f"
        head = coded[0].index(start)
        coded[0] = coded[0][:head] + b"\0\0\1\xb2DivX503b1393p" + coded[0][head:]
        for number, content in enumerate(coded):
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, FPS)
            packet.pts = packet.dts = number
            new.mux(packet)
    return path


def edited(path: Path, seconds: float, begin: int) -> Path:
    """Let the edit list of an MP4 file show ``seconds`` of it, from the media time ``begin`` on."""
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 12
    content[place : place + 8] = struct.pack(">Ii", round(1000 * seconds), begin)
    return written(path, bytes(content))


def sound(path: Path) -> Path:
    """A file that holds sound only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut(path: Path, share: float) -> Path:
    """Keep the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def scrambled(path: Path, share: float = 0.5) -> Path:
    """Overwrite the last part of an MP4 file's coded frames; the index behind them stays."""
    content = bytearray(path.read_bytes())
    end = content.index(b"moov") - 4
    begin = int(end * (1 - share))
    content[begin:end] = bytes(np.random.default_rng(1).integers(0, 255, end - begin, dtype=np.uint8))
    path.write_bytes(content)
    return path


def written(path: Path, content: bytes) -> Path:
    """A file of these bytes."""
    path.write_bytes(content)
    return path
