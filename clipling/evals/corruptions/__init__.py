"""The 15 common corruptions of Hendrycks and Dietterich (2019, arXiv 1903.12261, section 3) at five severities.

The constants are those that the authors published for ImageNet-C, chosen for pictures of 224 px; lengths in pixels stay what they are at
other sizes (elastic_transform alone goes with the size). Ours differ in three places, so numbers are near ImageNet-C's, but not
comparable number by number:

- frost: the authors lay five photographs of frost over the picture. We draw a frost (see weather.py): our reading.
- motion_blur and snow: the authors blur with ImageMagick, whose kernel we write as a sum of shifted pictures (see blur.py).
- ImageNet-C is stored as JPEG of quality 85, which adds compression to all 15. Ours is not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clipling.errors import UserError, near
from clipling.evals.corruptions import blur, digital, noise, weather

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]

FAMILIES: dict[str, dict[str, Corruption]] = {
    "noise": {
        "gaussian_noise": noise.gaussian_noise,
        "shot_noise": noise.shot_noise,
        "impulse_noise": noise.impulse_noise,
    },
    "blur": {
        "defocus_blur": blur.defocus_blur,
        "glass_blur": blur.glass_blur,
        "motion_blur": blur.motion_blur,
        "zoom_blur": blur.zoom_blur,
    },
    "weather": {
        "snow": weather.snow,
        "frost": weather.frost,
        "fog": weather.fog,
        "brightness": weather.brightness,
    },
    "digital": {
        "contrast": digital.contrast,
        "elastic_transform": digital.elastic_transform,
        "pixelate": digital.pixelate,
        "jpeg_compression": digital.jpeg_compression,
    },
}
CORRUPTIONS: dict[str, Corruption] = {name: function for family in FAMILIES.values() for name, function in family.items()}
FAMILY: dict[str, str] = {name: family for family, functions in FAMILIES.items() for name in functions}
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 32
"""The shortest side in pixels that can be corrupted."""
VERSION = 1
"""Raised when equal arguments give other pixels: features that were kept of the former are not used then."""


def corrupt(pixels: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """uint8 [h, w, 3] of pixels uint8 [h, w, 3], both sides 32 px at least; the same for the same arguments.

    Raises UserError for an unknown name or severity, ValueError for pixels of another type or shape.
    """
    if name not in CORRUPTIONS:
        raise UserError(f"there is no corruption {name!r}. {near(name, CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise UserError(f"the severity of {name} is {severity!r}; expected a whole number from 1 (light) to 5 (heavy)")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape[:2]) < SMALLEST:
        raise ValueError(f"pixels are {pixels.dtype} {list(pixels.shape)}; expected uint8 [h, w, 3] with both sides {SMALLEST} px at least")
    found = CORRUPTIONS[name](pixels, severity, np.random.default_rng(seed))
    if found.dtype == np.uint8:
        return found
    # The authors cut the fraction off. The thousandth keeps what is a whole number but for rounding (199.99999) from losing a step.
    return np.clip(found + np.float32(1e-3), 0, 255).astype(np.uint8)
