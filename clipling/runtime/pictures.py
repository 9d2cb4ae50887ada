"""Pictures as a caller has them, as upright RGB arrays, in batches of one size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipling.data.images import ImageError, decode, to_rgb
from clipling.errors import UserError

BATCH = 32  # pictures that a graph sees at once
PIXELS = 4_000_000  # pixels of the pictures that are decoded at once: 12 MB, and three times that where a graph resizes them


def as_sequence(images: Any) -> Sequence[Any]:
    """One picture or several as a sequence; an array [n, h, w, 3] is several. UserError for what is neither."""
    if isinstance(images, str | Path | bytes | bytearray | memoryview | Image.Image):
        return [images]
    if isinstance(images, np.ndarray):
        if images.ndim not in (3, 4):
            raise UserError(
                f"an array of shape {list(images.shape)} is no picture; expected uint8 [height, width, 3] or [n, height, width, 3]"
            )
        return [images] if images.ndim == 3 else images
    if not isinstance(images, Iterable):
        raise UserError(f"expected a picture or a sequence of pictures, not {type(images).__name__}")
    return images if isinstance(images, Sequence) else list(images)


def batches(images: Sequence[Any]) -> Iterator[tuple[list[int], np.ndarray]]:
    """(places in `images`, uint8 [n, h, w, 3]) of pictures of one size; together every place once. Memory is bounded."""
    waiting: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    pixels = 0
    for place, image in enumerate(images):
        array = pixels_of(image, place)
        group = waiting.setdefault(array.shape, [])
        group.append((place, array))
        pixels += array.shape[0] * array.shape[1]
        if len(group) == BATCH:
            pixels -= BATCH * array.shape[0] * array.shape[1]
            yield _stacked(waiting.pop(array.shape))
        elif pixels > PIXELS:
            pixels = 0
            yield from map(_stacked, waiting.values())
            waiting = {}
    yield from map(_stacked, waiting.values())


def _stacked(group: list[tuple[int, np.ndarray]]) -> tuple[list[int], np.ndarray]:
    places, arrays = zip(*group)
    return list(places), np.stack(arrays)


def pixels_of(image: Any, place: int = 0) -> np.ndarray:
    """Pixels uint8 [h, w, 3] of a path, bytes, a PIL picture or an array; `place` is named in a UserError."""
    if isinstance(image, np.ndarray):
        return _checked(image, place)
    name = str(image) if isinstance(image, str | Path) else f"picture {place}"
    try:
        if isinstance(image, str | Path):
            return np.asarray(decode(Path(image).read_bytes()))
        if isinstance(image, bytes | bytearray | memoryview):
            return np.asarray(decode(bytes(image)))
        if isinstance(image, Image.Image):
            return np.asarray(to_rgb(image))
    except ImageError as error:
        raise UserError(f"{name} cannot be read: {error}") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from error
    raise UserError(f"picture {place} is of the kind {type(image).__name__}; expected a path, bytes, a PIL picture or an array")


def _checked(array: np.ndarray, place: int) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise UserError(f"picture {place} is an array {array.dtype} {list(array.shape)}; expected uint8 [height, width, 3]")
    return array
