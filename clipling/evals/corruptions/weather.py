"""Weather. Every function takes pixels uint8 [h, w, 3] and gives float32 [h, w, 3] in 0 to 255, before clipping."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import fft

from clipling.evals.corruptions.blur import smeared, zoomed

GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Luma of ITU-R BT.601."""


def snow(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Flakes: enlarged noise above a threshold, smeared downwards, laid over a whitened picture and once more upside down."""
    mean, deviation, zoom, threshold, radius, sigma, keep = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    drawn = mean + deviation * rng.standard_normal(pixels.shape[:2], dtype=np.float32)
    flakes = np.array(zoomed(Image.fromarray(drawn), zoom))
    flakes[flakes < threshold] = 0
    flakes = 255 * smeared(np.clip(flakes, 0, 1), radius, sigma, rng.uniform(-135, -45))
    clear = pixels.astype(np.float32)
    white = np.maximum(clear, (clear @ GREY)[..., None] * 1.5 + 127.5)
    return keep * clear + (1 - keep) * white + (flakes + flakes[::-1, ::-1])[..., None]


def frost(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A drawn frost laid over the picture, with the authors' weights. Our reading: not comparable number by number.

    The authors take pieces of five photographs. What we draw has only their measured tone, contrast and spectrum (see `ice`).
    """
    clear, ice_weight = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    return np.float32(clear) * pixels.astype(np.float32) + np.float32(ice_weight) * ice(*pixels.shape[:2], rng)


def ice(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [h, w, 3] in 0 to 255: bluish white with crystals.

    Measured on pieces of 224 px of the authors' photographs: a piece has a mean luminance of about 112 to 206, a standard deviation
    of 15 to 33 around it, about equal energy in every octave, and red below blue by 14 to 88.
    """
    crystals = needles(max(height, width), rng)[:height, :width]
    crystals = (crystals - crystals.mean()) / crystals.std() * rng.uniform(15, 33)
    # The darker photographs are the bluer ones.
    tone = rng.uniform(112, 206)
    blue = rng.uniform(0.6, 1.4) * (15 + 0.3 * (206 - tone))
    tint = np.array([-0.55, 0.1, 0.45]) * blue
    return np.clip(crystals[..., None] + (tone + tint).astype(np.float32), 0, 255)


def needles(side: int, rng: np.random.Generator, directions: int = 5) -> np.ndarray:
    """float32 [side, side]: everywhere the highest of some noises, each of them drawn out in a direction of its own.

    The amplitude of a noise falls with 1 / frequency, where the frequency along its direction counts five times. A Gaussian of 0.6 px
    takes the finest grain off, which photographs do not have.
    """
    y, x = fft.fftfreq(side)[:, None], fft.rfftfreq(side)[None, :]
    found = np.full((side, side), -np.inf, dtype=np.float32)
    for angle in (np.arange(directions) + rng.random()) * np.pi / directions:
        along, across = x * np.cos(angle) + y * np.sin(angle), x * np.sin(angle) - y * np.cos(angle)
        frequency = np.hypot(5 * along, across)
        frequency[0, 0] = np.inf  # no constant part
        gain = (np.exp(-2 * (0.6 * np.pi) ** 2 * (x**2 + y**2)) / frequency).astype(np.float32)
        noise = fft.irfft2(gain * fft.rfft2(rng.standard_normal((side, side), dtype=np.float32)), (side, side))
        found = np.maximum(found, noise / noise.std())
    return found


def fog(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Plasma added to the picture, which is then scaled down so that its brightest value stays where it was."""
    weight, decay = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    height, width = pixels.shape[:2]
    cloud = plasma(max(height, width), decay, rng)[:height, :width, None]
    brightest = int(pixels.max()) / 255
    return (pixels.astype(np.float32) + np.float32(255 * weight) * cloud) * np.float32(brightest / (brightest + weight))


def plasma(side: int, decay: float, rng: np.random.Generator) -> np.ndarray:
    """float32 [s, s] from 0 to 1, s the next power of 2 from `side` on: diamond-square midpoint displacement on a torus.

    Fournier, Fussell and Carpenter, Communications of the ACM 25 (1982). Each halving of the step adds uniform draws of a smaller
    amplitude: by decay squared, for the authors multiply their draws by the amplitude twice.
    """
    grid, amplitude = np.zeros((1, 1)), 1.0
    while len(grid) < side:
        finer = np.empty((2 * len(grid), 2 * len(grid)))
        centres = _mean4(grid, _next(grid, 0), _next(grid, 1), _next(_next(grid, 0), 1), amplitude, rng)
        finer[::2, ::2], finer[1::2, 1::2] = grid, centres
        finer[::2, 1::2] = _mean4(grid, _next(grid, 1), centres, _before(centres, 0), amplitude, rng)
        finer[1::2, ::2] = _mean4(grid, _next(grid, 0), centres, _before(centres, 1), amplitude, rng)
        grid, amplitude = finer, amplitude / decay**2
    grid -= grid.min()
    return (grid / grid.max()).astype(np.float32)


def _mean4(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, amplitude: float, rng: np.random.Generator) -> np.ndarray:
    return (a + b + c + d) / 4 + rng.uniform(-amplitude, amplitude, a.shape)


def _next(grid: np.ndarray, axis: int) -> np.ndarray:
    return np.roll(grid, -1, axis)


def _before(grid: np.ndarray, axis: int) -> np.ndarray:
    return np.roll(grid, 1, axis)


def brightness(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """The value of HSV (the largest of the three channels) raised by a constant, hue and saturation kept."""
    more = 255 * (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]
    value = pixels.max(2, keepdims=True).astype(np.float32)
    raised = np.minimum(value + np.float32(more), 255)
    # Black has no hue: it becomes grey.
    return np.where(value > 0, pixels * (raised / np.maximum(value, 1)), raised)
