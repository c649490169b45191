"""Short video files for the tests: every frame can be told from the others, whatever codec and container."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS = 10


def picture(number: int, width: int, height: int) -> np.ndarray:
    """Frame ``number``: a ramp of colours that grows bluer, and a red square that moves; uint8 [H, W, 3]."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    pixels[..., 1] = np.linspace(255, 0, height).astype(np.uint8)[:, None]
    pixels[..., 2] = min(255, 4 * number)
    left = 2 * number % (width - 32)
    pixels[8:40, left : left + 32] = (255, 30, 30)
    return pixels


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
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            frame = frame.reformat(format=pixels, **{key: value for key, value in colours.items() if value is not None})
            if stamps is not None:
                frame.pts, frame.time_base = stamps[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turned(path: Path) -> Path:
    """Write into an MP4 file that it is to be shown turned by a quarter."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44  # after the fields of version 0
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


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
