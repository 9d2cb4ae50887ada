"""One picture as it is packed: small enough already and left as it is, or resized and encoded as JPEG."""

from __future__ import annotations

import io

from PIL import Image

from clipling.data.images import ImageError, decode, large_alone, size_and_format, verify
from clipling.errors import UserError

# What the reader of tars knows by these suffixes; other formats (JPEG 2000, HEIF, ...) are encoded anew.
SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "AVIF": "avif"}
_KEPT_WHEN_SMALL = ("JPEG", "PNG", "WEBP")
QUALITY = 90


def check_settings(size: int | None, quality: int) -> None:
    """Raises UserError for sizes and qualities that make no sense."""
    if size is not None and size < 16:
        raise UserError(f"--size {size}: expected at least 16 pixels for the shorter side, or none to keep all bytes as they are")
    if not 30 <= quality <= 100:
        raise UserError(f"--quality {quality}: expected 30 to 100 (of JPEG)")


def packed_picture(data: bytes, size: int | None, quality: int) -> tuple[bytes, str, bool]:
    """(bytes, suffix, whether they are those of `data`) of a picture whose shorter side is to be at most `size` pixels.

    A JPEG, PNG or WebP that is small enough stays as it is, bit for bit; without `size` every format that tars can hold does. Others
    are decoded as everywhere (upright, transparency on white), resized with the bicubic filter and saved as JPEG.
    Raises ImageError for a picture that cannot be read.
    """
    width, height, form = size_and_format(data)
    small = size is None or min(width, height) <= size
    if small and form in (SUFFIXES if size is None else _KEPT_WHEN_SMALL):
        verify(data)
        return data, SUFFIXES[form], True
    with large_alone(width * height):
        return _encoded(data, min(width, height) if size is None else size, quality, width, height), "jpg", False


def _encoded(data: bytes, size: int, quality: int, width: int, height: int) -> bytes:
    # Photographs much larger than wanted are read at 1/2, 1/4 or 1/8 of their size, still twice as large as wanted.
    image = decode(data, least=2 * size)
    short = min(width, height)
    wanted = (max(1, round(width * size / short)), max(1, round(height * size / short))) if short > size else image.size
    if image.size != wanted:
        image = image.resize(wanted, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    try:
        image.save(out, "JPEG", quality=quality)
    except (OSError, ValueError) as error:  # sides of more than 65,500 pixels
        raise ImageError(f"cannot be saved as JPEG: {error}") from error
    return out.getvalue()
