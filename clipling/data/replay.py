"""Augmentation that can be done again: what was done to a picture, as numbers, and doing it.

The records of DataCompDR (MobileCLIP, Vasu et al., arXiv 2311.17049): a crop in pixels of the source picture, perhaps a mirror, then
torchvision's RandAugment (Cubuk et al., arXiv 1909.13719) on the crop at its final size. Doing a record again on the same picture gives the
same pixels, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from clipling.data import draw
from clipling.data.views import Augment, crops_of_view, pixel_range, render

# torchvision's numbers: the place in this list is what a record holds.
OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"),
    *("Posterize", "Solarize", "AutoContrast", "Equalize"),
)
CANVAS = 224  # pixels of the crop whose translations are recorded; at another size they are scaled
BINS, MAGNITUDE, COUNT = 31, 9, 2  # RandAugment as torchvision has it by default
# What a magnitude may be: torchvision's widest policies and more, nothing that would break or blank a crop.
_BOUNDS = {"ShearX": 2.0, "ShearY": 2.0, "TranslateX": CANVAS, "TranslateY": CANVAS, "Rotate": 360.0, "Posterize": 8.0, "Solarize": 256.0}
_FACTOR = 10.0  # of Brightness, Color, Contrast and Sharpness
SIGNED = frozenset({"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"})


@dataclass(frozen=True, slots=True)
class Record:
    """One augmentation of one picture.

    box: (first row, first column, rows, columns) of the source picture in pixels; None for the whole picture. operations: number and
    magnitude of each, the sign in the magnitude; translations in pixels of a crop of `CANVAS`.
    """

    box: tuple[int, int, int, int] | None
    flip: bool = False
    operations: tuple[tuple[int, float], ...] = ()

    def to_json(self, flips: bool) -> list[Any]:
        """DataCompDR's form: `[[i, j, h, w], [[number, magnitude], ...]]`; with `flips` (mirrors were possible) true or null between."""
        made: list[Any] = [] if self.box is None else [list(self.box)]
        made += ([self.flip or None] if flips else []) + ([[list(o) for o in self.operations]] if self.operations else [None])
        return made

    @classmethod
    def from_json(cls, found: Any) -> Record:
        """Raises ValueError for anything but what `to_json` makes; null stands for a transform that was passed over."""
        box, flip, operations = None, False, ()
        if not isinstance(found, list):
            raise ValueError(f"an augmentation is a list, not {found!r}")
        for part in found:
            if part is None:
                continue
            if isinstance(part, bool):
                flip = part
            elif isinstance(part, list) and len(part) == 4 and all(type(n) is int for n in part):
                box = _checked_box(part)
            elif isinstance(part, list) and all(isinstance(o, list) and len(o) == 2 for o in part):
                operations = tuple(_checked_operation(*o) for o in part)
            else:
                raise ValueError(f"{part!r} is no part of an augmentation")
        return cls(box, flip, operations)

    def fits(self, width: int, height: int) -> bool:
        """Whether the crop lies inside of a picture of this size."""
        return self.box is None or (self.box[0] + self.box[2] <= height and self.box[1] + self.box[3] <= width)

    def rescaled(self, before: tuple[int, int], now: tuple[int, int]) -> Record:
        """The same part of a picture that was resized from `before` to `now`, each (width, height): rounded to whole pixels."""
        if self.box is None or before == now:
            return self
        first, down = pixel_range(self.box[0] / before[1], self.box[2] / before[1], now[1])
        left, right = pixel_range(self.box[1] / before[0], self.box[3] / before[0], now[0])
        return Record((first, left, down - first, right - left), self.flip, self.operations)

    def unit_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """(x, y, width, height) as shares of a picture of this size."""
        if self.box is None:
            return 0.0, 0.0, 1.0, 1.0
        i, j, h, w = self.box
        return j / width, i / height, w / width, h / height


def _checked_box(part: list[int]) -> tuple[int, int, int, int]:
    if min(part[:2]) < 0 or min(part[2:]) < 1:
        raise ValueError(f"{part} is no crop")
    return tuple(part)  # type: ignore[return-value]


def _checked_operation(number: Any, magnitude: Any) -> tuple[int, float]:
    if type(number) is not int or not 0 <= number < len(OPERATIONS) or type(magnitude) not in (int, float):
        raise ValueError(f"[{number!r}, {magnitude!r}] is no operation of RandAugment (numbers 0 to {len(OPERATIONS) - 1})")
    name = OPERATIONS[number]
    most = _BOUNDS.get(name, _FACTOR)
    least = 0.0 if name in ("Posterize", "Solarize") else -most
    if not least <= magnitude <= most:  # not true of what is no number either
        raise ValueError(f"[{number}, {magnitude!r}]: {name} takes a magnitude from {least:g} to {most:g}")
    return number, float(magnitude)


def draw_records(
    augment: Augment, operations: bool, seed: int, view: int, pairs: np.ndarray, sizes: Sequence[tuple[int, int]]
) -> list[Record]:
    """Augmentation number `view` of each of `pairs` int64 [n] with pictures of `sizes` (width, height): the same for the same arguments."""
    aspect = np.array([width / height for width, height in sizes])
    boxes, flips = crops_of_view(augment, seed, view, pairs, aspect)
    drawn = [_operations(seed, view, pairs, place) for place in range(COUNT)] if operations else []
    made = []
    for i, (width, height) in enumerate(sizes):
        x, y, w, h = boxes[i]
        top, bottom = pixel_range(y, h, height)
        left, right = pixel_range(x, w, width)
        made.append(Record((top, left, bottom - top, right - left), bool(flips[i]), tuple(found[i] for found in drawn)))
    return made


def _operations(seed: int, view: int, pairs: np.ndarray, place: int) -> list[tuple[int, float]]:
    numbers = draw.integers(seed, view, pairs, f"operation {place}", len(OPERATIONS))
    signs = np.where(draw.uniform(seed, view, pairs, f"sign {place}") < 0.5, -1.0, 1.0)
    return [(n, magnitude(OPERATIONS[n]) * (s if OPERATIONS[n] in SIGNED else 1.0)) for n, s in zip(numbers.tolist(), signs.tolist())]


def magnitude(name: str) -> float:
    """How strong an operation is, as torchvision has it for magnitude 9 of 31 bins on a crop of `CANVAS` pixels."""
    share = MAGNITUDE / (BINS - 1)
    if name in ("ShearX", "ShearY"):
        return 0.3 * share
    if name in ("TranslateX", "TranslateY"):
        return 150.0 / 331.0 * CANVAS * share
    if name == "Posterize":
        return float(8 - round(MAGNITUDE / ((BINS - 1) / 4)))
    factors = {"Rotate": 30.0 * share, "Solarize": 255.0 * (1 - share), "AutoContrast": 0.0, "Equalize": 0.0, "Identity": 0.0}
    return factors.get(name, 0.9 * share)


def replay(picture: np.ndarray, record: Record, size: int) -> np.ndarray:
    """The record done again: uint8 [h, w, 3], the picture that it was drawn for -> uint8 [size, size, 3].

    Raises ValueError when the crop does not lie inside of the picture: it is another one.
    """
    height, width = picture.shape[:2]
    if not record.fits(width, height):
        raise ValueError(f"the crop {record.box} does not lie inside of a picture of {width} x {height} pixels")
    i, j, h, w = record.box or (0, 0, height, width)
    made = render(picture[i : i + h, j : j + w], np.array((0.0, 0.0, 1.0, 1.0)), record.flip, size)
    return operated(made, record.operations) if record.operations else made


def operated(crop: np.ndarray, operations: Sequence[tuple[int, float]]) -> np.ndarray:
    """RandAugment's operations on a crop uint8 [s, s, 3], one after the other: bilinear, what comes into view is black."""
    for number, strength in operations:
        name = OPERATIONS[number]
        if name == "Posterize":
            crop = crop & np.uint8(256 - 2 ** (8 - int(strength)))
        elif name == "Solarize":
            crop = np.where(crop < strength, crop, 255 - crop)
        elif name != "Identity":
            crop = np.asarray(_changed(Image.fromarray(crop), name, strength))
    return crop


def _changed(image: Image.Image, name: str, strength: float) -> Image.Image:
    # What torchvision calls for pictures of Pillow, which DataCompDR was made with, without the layers in between: they cost more than
    # the work on a crop of 64 pixels.
    if name in ("AutoContrast", "Equalize"):
        return (ImageOps.autocontrast if name == "AutoContrast" else ImageOps.equalize)(image)
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return getattr(ImageEnhance, name)(image).enhance(1.0 + strength)
    if name == "Rotate":
        return image.rotate(strength, Image.Resampling.BILINEAR)
    if name in ("TranslateX", "TranslateY"):
        pixels = int(strength * image.width / CANVAS)
        place = (1, 0, -pixels, 0, 1, 0) if name == "TranslateX" else (1, 0, 0, 0, 1, -pixels)
        return image.transform(image.size, Image.Transform.AFFINE, place, Image.Resampling.NEAREST)  # whole pixels
    slant = (1, strength, 0, 0, 1, 0) if name == "ShearX" else (1, 0, 0, strength, 1, 0)
    return image.transform(image.size, Image.Transform.AFFINE, slant, Image.Resampling.BILINEAR)
