"""Pictures as users have them: each kind is compared with a formula of its own."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipling.data.images import ImageError, decode, size_and_format, verify
from tests.data.making import encode, picture, pixels

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pytest undoes the filters of the package
UPRIGHT = pixels(1)
# What a camera stored so that turning it as the tag says gives UPRIGHT, written with numpy alone.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"lossless": True} if form == "WEBP" else {}
    data = encode(Image.fromarray(np.ascontiguousarray(STORED[orientation])), form, exif=exif, **how)
    assert np.array_equal(np.asarray(decode(data)), UPRIGHT)
    assert size_and_format(data) == (UPRIGHT.shape[1], UPRIGHT.shape[0], form)


def test_damaged_exif_does_not_lose_the_picture():
    text = struct.pack("<HHI4s", 0x0112, 2, 4, b"abc\0")  # an orientation that is a text
    for block in (b"\xff" * 40, struct.pack("<IH", 8, 1) + text + b"\0" * 4):
        data = picture(1, exif=b"Exif\0\0II*\0" + block)
        assert decode(data).size == (12, 9)
        assert size_and_format(data) == (12, 9, "JPEG")


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None].astype(float) / 255
    return colour * share + 255 * (1 - share)


def test_transparency_is_laid_on_white():
    alpha = pixels(2)[:, :, 0]
    data = encode(Image.fromarray(np.dstack([UPRIGHT, alpha])), "PNG")
    assert np.abs(np.asarray(decode(data)) - on_white(UPRIGHT, alpha)).max() <= 1
    grey = UPRIGHT[:, :, 0]
    data = encode(Image.fromarray(np.dstack([grey, alpha])), "PNG")
    assert Image.open(io.BytesIO(data)).mode == "LA"
    assert np.abs(np.asarray(decode(data)) - on_white(np.dstack([grey] * 3), alpha)).max() <= 1


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_becomes_white(mode):
    image = Image.new(mode, (4, 2), 0)
    image.putpixel((1, 1), {"P": 1, "L": 200, "RGB": (200, 0, 0), "1": 1}[mode])
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 0, 0])
    transparent = (0, 0, 0) if mode == "RGB" else 0
    found = np.asarray(decode(encode(image, "PNG", transparency=transparent)))
    assert (found == 255).all(axis=2).sum() == (8 if mode == "1" else 7)


def test_cmyk_and_grey_jpeg():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(np.asarray(decode(encode(red, "JPEG"))).astype(int) - [255, 0, 0]).max() <= 3
    grey = Image.new("L", (8, 8), 77)
    assert np.array_equal(np.asarray(decode(encode(grey, "PNG"))), np.full((8, 8, 3), 77))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bits_are_scaled(form):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16)
    data = encode(Image.fromarray(values * 257), form)
    assert np.array_equal(np.asarray(decode(data))[:, :, 1], values)


def test_integers_and_floats_of_tiff():
    values = np.linspace(0, 1, 64).reshape(8, 8)
    for stored in (values, values * 255, values * 70000, (values * 65535).astype(np.int32)):
        if stored.dtype == float:
            stored = stored.astype(np.float32)
        found = np.asarray(decode(encode(Image.fromarray(stored), "TIFF")))[:, :, 0]
        assert np.abs(found - values * 255).max() <= 1


def test_transparent_16_bit_grey():
    values = np.array([[0, 65535], [257, 514]], dtype=np.uint16)
    found = np.asarray(decode(encode(Image.fromarray(values), "PNG", transparency=257)))[:, :, 0]
    assert found.tolist() == [[0, 255], [255, 2]]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(form):
    first, second = Image.new("RGB", (6, 6), (250, 0, 0)), Image.new("RGB", (6, 6), (0, 0, 250))
    data = encode(first, form, save_all=True, append_images=[second], duration=50)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.abs(np.asarray(decode(data)).astype(int) - [250, 0, 0]).max() <= 3


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_limits():
    with pytest.raises(ImageError, match="limit"):
        decode(picture(1), pixel_limit=100)
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))
    for look in (decode, verify, size_and_format):
        with pytest.raises(ImageError, match="limit"):
            look(bomb)
        with pytest.raises(ImageError, match="empty"):
            look(b"")
        with pytest.raises(ImageError, match="format"):
            look(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")


def outcome(look, data: bytes) -> bool:
    try:
        look(data)
    except ImageError:
        return False
    return True


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_anywhere(form):
    data = picture(3, form, **({"progressive": True} if form == "JPEG" else {}))
    good = [outcome(decode, data[:cut]) for cut in range(0, len(data), 3)]
    assert good == [outcome(verify, data[:cut]) for cut in range(0, len(data), 3)]
    assert good.count(True) * 3 <= 24  # what is missing there is the end mark only
    assert outcome(decode, data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF"]), st.data())
def test_damage_gives_image_errors_and_nothing_else(form, data):
    content = bytearray(picture(4, form))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    verified, decoded = outcome(verify, bytes(content)), outcome(decode, bytes(content))
    assert decoded or not verified  # what the index lets through, training can decode
    outcome(size_and_format, bytes(content))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0"]))
def test_random_bytes(data, start):
    decoded, verified = outcome(decode, start + data), outcome(verify, start + data)
    assert decoded or not verified
