"""Pictures as users have them, decoded one way everywhere: training, evaluation, index and runtime."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings

import numpy as np
from PIL import Image

# Pillow reads more, but some of its readers start other programs (EPS) and none of those hold photographs.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "AVIF", "HEIF", "ICO")
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
# Pillow's limit, beyond which it refuses to open; below it, it warns from half of that on, which tells a user nothing.
PIXEL_LIMIT = 178_956_970
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # remarks on damaged metadata


# A picture of more pixels (200 MB as RGB) is worked on while no other such picture is: a file of 500 kB may be one of 0.5 GB, and many
# threads that each hold one fill any memory.
LARGE_PIXELS = 2**26
_LARGE = threading.RLock()


class ImageError(ValueError):
    """A picture that cannot be used; the message says why."""


def decode(data: bytes, pixel_limit: int = PIXEL_LIMIT, least: int | None = None) -> Image.Image:
    """The picture in `data` as RGB, upright, 8 bits a channel.

    EXIF rotation is applied, transparency laid on white, CMYK converted, 16 bits scaled (not clipped), and of an
    animation the first frame is taken. `pixel_limit` may lower Pillow's own limit of 178,956,970 pixels.
    With `least` a JPEG is read at the smallest of 1, 1/2, 1/4 and 1/8 of its size whose sides are at least so many
    pixels: much less work, and other pixels than a resize of the whole, so never where pixels must be exact.

    Raises:
        ImageError: broken, truncated, unknown or too large.
    """
    try:
        image = _open(data, pixel_limit)
        if least is not None:
            image.draft(None, (least, least))
        return to_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        raise ImageError(_reason(error)) from error


def large_alone(pixels: int) -> contextlib.AbstractContextManager:
    """Inside of it no other thread works on a picture of more than LARGE_PIXELS, where this one has so many."""
    return _LARGE if pixels > LARGE_PIXELS else contextlib.nullcontext()


def decode_fast(data: bytes, least: int) -> tuple[np.ndarray, tuple[int, int]]:
    """(uint8 [h, w, 3], (width, height) of the picture itself): `decode` for training, where pixels need not be exact.

    JPEGs at least twice as large as `least` are read at 1/2, 1/4 or 1/8 of their size, others by torchvision, which hands
    out a tensor without Pillow's copies. Whatever these do not take (rotated, CMYK, other formats) is decoded as by `decode`.
    Raises ImageError.
    """
    try:
        image = _open(data, PIXEL_LIMIT)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(_reason(error)) from error
    plain = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and _orientation(image) == 1
    size = image.size
    if plain and min(size) >= 2 * least:
        image.draft(None, (least, least))
        return np.asarray(to_rgb(image)), size
    if plain and (found := _by_torchvision(data, size)) is not None:
        return found, size
    return np.asarray(decode(data, least=least)), size_and_format(data)[:2]


def _by_torchvision(data: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """uint8 [h, w, 3] of a JPEG of this (width, height); None where torchvision is absent or cannot read it."""
    try:
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        found = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except (ImportError, RuntimeError):
        return None
    return found.permute(1, 2, 0).numpy() if found.shape[1:] == size[::-1] else None


def to_rgb(image: Image.Image) -> Image.Image:
    """What `decode` makes of a picture that Pillow has opened; a result of its own is left as it is. Raises ImageError."""
    try:
        image.load()
        made = _upright(image, _to_rgb(image))
        made.info = {}  # the rotation that it names is done
        return made
    except Exception as error:
        raise ImageError(_reason(error)) from error


def verify(data: bytes, pixel_limit: int = PIXEL_LIMIT) -> None:
    """Raises ImageError where `decode` would, at a fraction of the cost: JPEGs are read at 1/8 of their size."""
    try:
        image = _open(data, pixel_limit)
        with large_alone(image.size[0] * image.size[1]):
            image.draft(None, (1, 1))
            image.load()
            if image.mode not in ("RGB", "L"):
                _to_rgb(image)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(_reason(error)) from error


def size_and_format(data: bytes) -> tuple[int, int, str]:
    """(width, height, format name) as the file's header says, after EXIF rotation. Raises ImageError."""
    try:
        image = _open(data, PIXEL_LIMIT)
        # Pillow swaps the size of a turned TIFF itself, but not in all of its versions: its tags are as stored.
        tags = getattr(image, "tag_v2", {})
        width, height = int(tags.get(256, image.size[0])), int(tags.get(257, image.size[1]))
        with large_alone(width * height):  # of a PNG this reads all of it: EXIF may come last
            turned = _orientation(image) >= 5
        return (height, width, image.format) if turned else (width, height, image.format)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(_reason(error)) from error


def _open(data: bytes, pixel_limit: int) -> Image.Image:
    if not data:
        raise ImageError("the file is empty")
    Image.init()
    image = Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])
    width, height = image.size
    if width * height > pixel_limit:
        raise ImageError(f"{width} x {height} pixels are more than the limit of {pixel_limit:,}")
    if width < 1 or height < 1:
        raise ImageError("the picture has no pixels")
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a picture of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"more pixels than the limit of {PIXEL_LIMIT:,}"
    return str(error) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block does not make the picture worse
        return 1


def _upright(image: Image.Image, rgb: Image.Image) -> Image.Image:
    # `image` is loaded: Pillow turns TIFFs itself while loading and then no longer reports an orientation.
    turn = _TURNED.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as 8 bits.

    The range is 16 bits for 16-bit modes and for integers that stay inside it, 1 for floats up to 1, 255 for floats
    up to 255, and otherwise the picture's own maximum.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    top = values.max(initial=0.0)
    if image.mode == "F":
        white = 1.0 if top <= 1 else 255.0 if top <= 255 else top
    else:
        white = 65535.0 if top <= 65535 else top
    grey = np.rint(np.clip(values / white, 0, 1) * 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)
