"""Opening images: every kind becomes upright RGB, every broken one a MediaError that says why."""

from __future__ import annotations

import base64
import pickle
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, features

from vlkit.data.images import (
    IMAGE_SUFFIXES,
    MediaError,
    as_rgb,
    formats,
    identify_record,
    image_size,
    open_image,
    opening,
    read_image,
    to_rgb,
)
from vlkit.data.manifest import Dataset
from vlkit.data.scan import find_media
from vlkit.data.transforms import image_transform
from vlkit.encoders.bases import Preprocess
from vlkit.errors import UserError


def blocks(width: int = 48, height: int = 32) -> Image.Image:
    """Blocks of 8 pixels in random colours: survives JPEG nearly unchanged and shows every flip."""
    colours = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3))
    return Image.fromarray(np.kron(colours, np.ones((8, 8, 1))).astype(np.uint8))


def reason(path: Path, **options) -> str:
    with pytest.raises(MediaError) as error:
        open_image(path, **options)
    assert error.value.path == str(path)
    assert str(error.value) == f"{path}: {error.value.reason}"
    return error.value.reason


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(path: Path, values: np.ndarray, exif: bytes = b"") -> None:
    """A PNG of 16-bit colour, uint16 [H, W, 3 or 4], which Pillow cannot write."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 6, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    extra = chunk(b"eXIf", exif) if exif else b""
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def png_of_size(path: Path, width: int, height: int) -> Path:
    """A valid PNG header that promises far more pixels than the few bytes behind it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff", "ppm"])
def test_every_format_gives_the_same_rgb_image(tmp_path, suffix):
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}
    blocks().save(tmp_path / f"a.{suffix}", **options.get(suffix, {}))
    image = open_image(tmp_path / f"a.{suffix}")
    assert (image.mode, image.size) == ("RGB", (48, 32))
    assert np.abs(np.asarray(image, int) - np.asarray(blocks(), int)).mean() < 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_pixel_type_becomes_rgb(tmp_path, mode):
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    level = 255 if mode == "1" else 130
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), level * 257, np.uint16))
    else:
        image = Image.new("RGB", (8, 8), (level, level, level)).convert(mode, palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / f"a.{suffix}")
    assert Image.open(tmp_path / f"a.{suffix}").mode == ("RGB" if mode == "YCbCr" else mode)
    pixels = np.asarray(open_image(tmp_path / f"a.{suffix}"), int)
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels - level).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bit_greys_keep_their_range(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    if suffix == "pgm":
        (tmp_path / "a.pgm").write_bytes(b"P5 16 16 65535\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    pixels = np.asarray(open_image(tmp_path / f"a.{suffix}"))
    assert np.array_equal(pixels[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize(("bits", "expected"), [(8, 252), (10, 252), (12, 252), (14, 252), (16, 252)])
def test_greys_of_fewer_bits_in_16_are_not_black(tmp_path, suffix, bits, expected):
    """A scanner's 12 bits in a 16-bit file: 0 to 4032 becomes 0 to 252, as 0 to 64512 does."""
    ramp = (np.arange(64)[None, :] * np.ones((8, 1)) * 2 ** (bits - 6)).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / f"a.{suffix}")
    pixels = np.asarray(open_image(tmp_path / f"a.{suffix}"))
    assert (pixels.min(), pixels.max()) == (0, expected)
    assert np.array_equal(pixels[0, :, 0], np.arange(64) * 4)
    assert np.array_equal(np.asarray(to_rgb(Image.open(tmp_path / f"a.{suffix}"))), pixels)


def test_a_stated_range_is_believed(tmp_path):
    """PGM says its largest value: a dark image of 16 bits stays dark, 12 bits fill the range."""
    ramp = (np.arange(64)[None, :] * np.ones((8, 1)) * 64).astype(">u2")
    (tmp_path / "twelve.pgm").write_bytes(b"P5 64 8 4095\n" + ramp.tobytes())
    (tmp_path / "sixteen.pgm").write_bytes(b"P5 64 8 65535\n" + ramp.tobytes())
    assert np.asarray(open_image(tmp_path / "twelve.pgm")).max() == 252
    assert np.asarray(open_image(tmp_path / "sixteen.pgm")).max() == 15


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("bits", [12, 14, 16])
def test_colours_of_fewer_bits_in_16_are_not_black(tmp_path, channels, bits):
    values = (np.arange(64)[None, :, None] * np.ones((8, 1, channels)) * 2 ** (bits - 6)).astype(np.uint16)
    values[..., 1] //= 2
    if channels == 4:
        values[..., 3] = 65535
    deep_png(tmp_path / "a.png", values)
    pixels = np.asarray(open_image(tmp_path / "a.png"))
    assert np.array_equal(pixels[0, :, 0], np.arange(64) * 4) and np.array_equal(pixels[0, :, 1], np.arange(64) * 2)


def test_a_turned_image_of_12_bit_colour_is_turned_once(tmp_path):
    values = np.full((8, 16, 3), 4032, np.uint16)
    values[:4] = 0
    exif = Image.Exif()
    exif[0x0112] = 6
    deep_png(tmp_path / "a.png", values, exif.tobytes().removeprefix(b"Exif\0\0"))
    pixels = np.asarray(open_image(tmp_path / "a.png"))
    assert pixels.shape == (16, 8, 3) and (pixels[:, 4:] == 0).all() and (pixels[:, :4] == 252).all()


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, 4:] = (200, 10, 10, 255)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    palette = Image.new("P", (8, 8))
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.paste(1, (4, 0, 8, 8))
    palette.save(tmp_path / "palette.png", transparency=0)
    palette.save(tmp_path / "palette.gif", transparency=0)
    Image.fromarray(rgba[..., :3]).save(tmp_path / "key.png", transparency=(0, 0, 0))
    for name in ("rgba.png", "palette.png", "palette.gif", "key.png"):
        pixels = np.asarray(open_image(tmp_path / name))
        assert (pixels[:, :4] == 255).all(), name
        assert (pixels[:, 4:] == (200, 10, 10)).all(), name


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    blocks().save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    assert upright.size == ((48, 32) if orientation < 5 else (32, 48))
    assert np.array_equal(np.asarray(open_image(path)), np.asarray(upright))


@pytest.mark.parametrize("suffix", ["jpg", "mpo", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_opened_image_is_not_turned_again(tmp_path, suffix, orientation):
    """The orientation is gone once it is applied: whoever gets the opened image, or a copy, sees the same pixels."""
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    options = {"webp": {"lossless": True}, "mpo": {"save_all": True}}
    blocks().save(path, exif=exif, **options.get(suffix, {}))
    size = (48, 32) if orientation < 5 else (32, 48)
    once = open_image(path)
    assert image_size(path) == once.size == size
    for again in (to_rgb(once), to_rgb(to_rgb(once)), to_rgb(once.copy()), to_rgb(once.convert("RGBA"))):
        assert np.array_equal(np.asarray(again), np.asarray(once))
    once.save(tmp_path / "copy.png", exif=once.getexif())
    assert np.array_equal(np.asarray(open_image(tmp_path / "copy.png")), np.asarray(once))
    # Opened by the caller, loaded or not; turned by the caller already.
    for loaded in (False, True):
        given = Image.open(path)
        given.load() if loaded else None
        assert np.array_equal(np.asarray(to_rgb(given)), np.asarray(once))
    assert np.array_equal(np.asarray(to_rgb(ImageOps.exif_transpose(Image.open(path)))), np.asarray(once))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_orientation_in_xmp_is_applied_once(tmp_path, suffix):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>'
    path = tmp_path / f"a.{suffix}"
    if suffix == "png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
        blocks().save(path, pnginfo=info)
    else:
        blocks().save(path, xmp=xmp, **({"lossless": True} if suffix == "webp" else {}))
    once = open_image(path)
    assert once.size == image_size(path) == (32, 48)
    assert np.array_equal(np.asarray(to_rgb(once)), np.asarray(once))


def test_a_turned_palette_keeps_its_transparency(tmp_path):
    palette = Image.new("P", (8, 4))
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.paste(1, (4, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3
    palette.save(tmp_path / "a.png", transparency=0, exif=exif)
    pixels = np.asarray(open_image(tmp_path / "a.png"))
    assert (pixels[:, 4:] == 255).all() and (pixels[:, :4] == (200, 10, 10)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_spoil_the_image(tmp_path):
    blocks().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert open_image(tmp_path / "a.jpg").size == (48, 32)


def test_animation_gives_its_first_frame(tmp_path):
    blocks().save(tmp_path / "a.webp", save_all=True, append_images=[Image.new("RGB", (48, 32))], lossless=True)
    assert np.array_equal(np.asarray(open_image(tmp_path / "a.webp")), np.asarray(blocks()))


def test_missing_empty_and_other_files_are_named(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>404 not found</html>")
    (tmp_path / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    assert reason(tmp_path / "none.jpg") == "missing"
    assert reason(tmp_path / "page.jpg" / "x.jpg") == "missing"
    assert reason(tmp_path / "empty.jpg") == "empty file"
    assert reason(tmp_path / "page.jpg") == "not an image"
    assert reason(tmp_path / "script.jpg") == "not an image"
    assert reason(tmp_path) == "a folder, not a file"


def brands(*names: str, size: int | None = None) -> bytes:
    body = names[0].encode() + b"\0\0\0\0" + b"".join(name.encode() for name in names)
    return struct.pack(">I", len(body) + 8 if size is None else size) + b"ftyp" + body + b"\0" * 400


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (brands("heic", "mif1", "miaf"), "HEIC needs pip install 'vlkit[heic]'; or convert it to JPEG or PNG"),
        (brands("mif1", "heic"), "HEIC needs pip install 'vlkit[heic]'; or convert it to JPEG or PNG"),
        (brands("msf1", "hevc"), "HEIC needs pip install 'vlkit[heic]'; or convert it to JPEG or PNG"),
        (brands("mif1", "miaf"), "HEIF needs pip install 'vlkit[heic]'; or convert it to JPEG or PNG"),
        (brands("crx ", "isom"), "camera raw (CR3) is not supported; convert it to JPEG or PNG"),
        (brands("isom", "mp42"), "a video, not an image"),
        (brands("qt  "), "a video, not an image"),
        (b"RIFF\0\0\0\0AVI LIST", "a video, not an image"),
        (b"\xff\x0a" + b"\0" * 40, "JPEG XL is not supported; convert it to JPEG or PNG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL is not supported; convert it to JPEG or PNG"),
        (b"8BPS\0\1", "Photoshop (PSD) is not supported; convert it to JPEG or PNG"),
        (b"%PDF-1.7", "PDF is not supported; convert it to JPEG or PNG"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "SVG is not supported; convert it to JPEG or PNG"),
        (b"II*\0\x10\0\0\0CR\2\0", "camera raw (CR2) is not supported; convert it to JPEG or PNG"),
        (brands("avif", "mif1"), "damaged or truncated"),
    ],
)
def test_other_formats_are_called_by_their_name(tmp_path, monkeypatch, start, expected):
    """Whatever the file is called: phones and mail programs rename HEIC to .jpg."""
    without_heif = tuple(name for name in formats.readable_formats() if name != "HEIF")
    monkeypatch.setattr(formats, "readable_formats", lambda: without_heif)
    for name in ("a.jpg", "a.HEIC"):
        (tmp_path / name).write_bytes(start)
        assert reason(tmp_path / name).startswith(expected)


HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9jAA"
    "AAAERAAAIAAQAAAAAB7AABAAAAAAAAADUAAgAAAAACIQABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAAABVp"
    "bmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGE"
    "ABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkA"
    "AAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAKAAAAAEAAAAAAAAAAv///+gAAAACAAAAEH"
    "BpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEAAQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAAGFtZGF0AAAA"
    "MSgBr1j5Et3/3juRy83+kgopm4Cv6ZjJFqcNVUNrImPN3+ukuKbRcs8ohgAByLs++4AAAAAGRXhpZgAATU0AKgAAAAgAAQESAAMAAAABAAYAAA"
    "AAAAA="
)
"""A red image of 64 x 40 pixels with a blue strip on its left, turned by 90 degrees (EXIF orientation 6)."""


def test_heic_is_read_upright_under_any_name(tmp_path):
    pytest.importorskip("pi_heif")
    for name in ("IMG_1.HEIC", "renamed.jpg"):
        (tmp_path / name).write_bytes(HEIC)
        image = open_image(tmp_path / name)
        assert image_size(tmp_path / name) == image.size == (40, 64) and image.mode == "RGB"
        blue, red = np.asarray(image)[:18].mean((0, 1)), np.asarray(image)[24:].mean((0, 1))
        np.testing.assert_allclose([blue, red], [(30, 60, 200), (200, 30, 30)], atol=6)
    (tmp_path / "cut.heic").write_bytes(HEIC[:-60])
    assert "truncated" in reason(tmp_path / "cut.heic")
    assert find_media(tmp_path, "images").names == ["IMG_1.HEIC", "cut.heic", "renamed.jpg"]


def test_avif_without_its_decoder_is_called_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "readable_formats", lambda: ("JPEG", "PNG"))
    (tmp_path / "a.avif").write_bytes(brands("mif1", "avif"))
    assert reason(tmp_path / "a.avif").startswith("AVIF is not supported by this build of Pillow; convert")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff", "ppm"])
@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("lenient", [False, True])
def test_truncated_files_are_refused(tmp_path, monkeypatch, suffix, share, lenient):
    # Other libraries switch this on for the whole process.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    noise.save(tmp_path / f"a.{suffix}")
    data = (tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(data[: int(len(data) * share)])
    assert "truncated" in reason(tmp_path / f"a.{suffix}")


def test_unstated_pixel_range_is_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tiff")
    assert reason(tmp_path / "a.tiff").startswith("unsupported 32-bit")


@pytest.mark.filterwarnings("error")
def test_size_is_checked_before_decoding(tmp_path, monkeypatch):
    bomb = png_of_size(tmp_path / "bomb.png", 60000, 60000)
    monkeypatch.setattr(opening, "_decode", lambda *_: pytest.fail("decoded"))
    before = Image.MAX_IMAGE_PIXELS
    assert reason(bomb).startswith("too large: 60000 x 60000 pixels exceeds")
    blocks().save(tmp_path / "a.png")
    assert reason(tmp_path / "a.png", max_pixels=48 * 32 - 1) == "too large: 48 x 32 pixels exceeds 1535 pixels"
    assert before == Image.MAX_IMAGE_PIXELS  # the limit of others stays
    monkeypatch.undo()
    assert open_image(tmp_path / "a.png", max_pixels=48 * 32).size == (48, 32)


def test_raised_limit_goes_beyond_that_of_pillow(tmp_path, monkeypatch):
    blocks().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert open_image(tmp_path / "a.png").size == (48, 32)


def test_min_side_decodes_a_smaller_jpeg(tmp_path):
    blocks(1600, 960).save(tmp_path / "a.jpg")
    blocks(1600, 960).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.jpg").size == (1600, 960)
    assert open_image(tmp_path / "a.jpg", min_side=224).size == (400, 240)
    assert open_image(tmp_path / "a.jpg", min_side=2000).size == (1600, 960)
    assert open_image(tmp_path / "a.png", min_side=224).size == (1600, 960)


def test_threads_may_share_an_image_that_was_opened_lazily(tmp_path):
    Image.radial_gradient("L").resize((1500, 1500)).convert("RGB").save(tmp_path / "a.png")
    expected = np.asarray(open_image(tmp_path / "a.png"))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            lazy = Image.open(tmp_path / "a.png")
            for found in pool.map(as_rgb, [lazy] * 8):
                assert np.array_equal(np.asarray(found), expected)


def test_what_is_no_usable_image_in_memory_is_said(tmp_path):
    for given in (b"bytes", np.zeros((4, 4, 3), np.uint8), None, 3):
        with pytest.raises(UserError, match=f"an image is a {type(given).__name__}; give a path or a Pillow image"):
            as_rgb(given)
    for image, reason in (
        (Image.new("F", (4, 4)), "unsupported 32-bit pixels"),
        (Image.new("I", (4, 4)), "unsupported 32-bit pixels"),
        (Image.new("RGB", (0, 4)), r"has no pixels \(0 x 4\)"),
    ):
        with pytest.raises(MediaError, match=f"an image in memory: {reason}"):
            as_rgb(image)
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-30])
    with pytest.raises(MediaError, match=r"cut\.png: "):
        as_rgb(Image.open(tmp_path / "cut.png"))


def test_error_survives_a_worker_process(tmp_path):
    error = pickle.loads(pickle.dumps(MediaError(tmp_path / "a.jpg", "missing")))
    assert (error.path, error.reason) == (str(tmp_path / "a.jpg"), "missing")
    # A data loader joins the traceback of its worker into one text and builds the exception from that.
    assert str(MediaError("a.jpg: missing")) == "a.jpg: missing"


def test_to_rgb_leaves_plain_images_alone():
    image = blocks()
    assert to_rgb(image) is image


def test_suffixes_are_those_pillow_can_open():
    known = Image.registered_extensions()
    wanted = IMAGE_SUFFIXES - (set() if features.check("avif") else {".avif"})
    assert {known[suffix] for suffix in wanted} <= {*formats.FORMATS}


def test_a_dataset_may_decode_its_jpegs_at_a_part_of_their_size(tmp_path):
    """Its cached taps are told apart, and the transform is as for whole images but for rounding."""
    Image.radial_gradient("L").resize((1600, 960)).convert("RGB").save(tmp_path / "a.jpg")
    dataset, record = Dataset(tmp_path, "d", "retrieval", tmp_path, {}), {"image": "a.jpg"}
    whole, identity = read_image(dataset, record), identify_record(dataset, record)
    preprocess = Preprocess((96, 96), (0.5,) * 3, (0.25,) * 3)
    dataset = replace(dataset, min_side=preprocess.draft_side)
    part = read_image(dataset, record)
    assert (whole.size, part.size) == ((1600, 960), (400, 240))
    assert identify_record(dataset, record) != identity
    transform = image_transform(preprocess)
    assert (transform(whole) - transform(part)).abs().mean() < 0.02
