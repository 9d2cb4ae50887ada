"""Noise. Every function takes pixels uint8 [h, w, 3] and gives float32 or uint8 [h, w, 3] in 0 to 255, before clipping."""

from __future__ import annotations

import numpy as np


def gaussian_noise(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """As of poor light: every value moves by a normal draw of this standard deviation (of a full scale of 1)."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return pixels + np.float32(255 * deviation) * rng.standard_normal(pixels.shape, dtype=np.float32)


def shot_noise(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """As of few photons: Poisson counts, `photons` of them at full scale."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    counts = rng.poisson(pixels.astype(np.float64) * (photons / 255))
    return counts.astype(np.float32) * np.float32(255 / photons)


def impulse_noise(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """As of bit errors: this share of all values (channels apart) becomes 0 or 255, each with probability one half."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    drawn = rng.random(pixels.shape, dtype=np.float32)
    found = pixels.copy()
    found[drawn < share / 2] = 0
    found[drawn >= 1 - share / 2] = 255
    return found
