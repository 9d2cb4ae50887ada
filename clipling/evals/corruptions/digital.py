"""Digital corruptions. Every function takes pixels uint8 [h, w, 3] and gives float32 (before clipping) or uint8 [h, w, 3], 0 to 255."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter1d, map_coordinates


def contrast(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Every channel drawn towards its mean."""
    kept = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = pixels.mean((0, 1))
    return np.float32(kept) * pixels.astype(np.float32) + ((1 - kept) * mean).astype(np.float32)


def pixelate(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Made smaller by means over boxes, and larger again without smoothing."""
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Through a JPEG of low quality."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return np.asarray(Image.open(file))


def elastic_transform(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Skewed by moving three points at random, then pulled about by smooth random displacements.

    All lengths go with the shorter side. The authors' constants are those of 244 px for pictures of 224; so are these.
    """
    pull, sigma, skew = ((2.0, 0.7, 0.1), (2.0, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))[severity - 1]
    side = min(pixels.shape[:2]) * 244 / 224
    return displaced(skewed(pixels, skew * side, rng), pull * side, sigma * side, rng)


def skewed(pixels: np.ndarray, most: float, rng: np.random.Generator) -> np.ndarray:
    """float32 [h, w, 3]: the affine map that moves three points around the centre by up to `most` px; borders are mirrored."""
    height, width = pixels.shape[:2]
    centre, arm = np.array([height // 2, width // 2], dtype=np.float64), min(height, width) // 3
    points = centre + arm * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    moved = points + rng.uniform(-most, most, points.shape)
    # Where a pixel comes from is the map back, from the moved points: rows of [y, x, 1] times it are [y, x]. Least squares, for
    # three points that lie on a line (which random ones almost never do) have no map.
    back = np.linalg.lstsq(np.column_stack([moved, np.ones(3)]), points, rcond=None)[0]
    y, x = np.mgrid[:height, :width]
    return _sampled(pixels, y * back[0, 0] + x * back[1, 0] + back[2, 0], y * back[0, 1] + x * back[1, 1] + back[2, 1], "mirror")


def displaced(pixels: np.ndarray, pull: float, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """float32 [h, w, 3]: every pixel from a place away by `pull` times uniform noise in (-1, 1) under a Gaussian of `sigma` px."""
    height, width = pixels.shape[:2]
    rows, columns = _smoothing(height, sigma), _smoothing(width, sigma)
    right, down = (pull * (rows @ rng.uniform(-1, 1, (height, width)) @ columns.T) for _ in range(2))
    y, x = np.mgrid[:height, :width]
    return _sampled(pixels, y + down, x + right, "reflect")


@lru_cache(maxsize=8)
def _smoothing(side: int, sigma: float) -> np.ndarray:
    """float64 [side, side]: the Gaussian along one axis as a matrix. It may be wider than the picture, where a filter would be slow."""
    return gaussian_filter1d(np.eye(side), sigma, axis=0, mode="reflect", truncate=3)


def _sampled(pixels: np.ndarray, y: np.ndarray, x: np.ndarray, border: str) -> np.ndarray:
    planes = [map_coordinates(pixels[..., c], [y, x], output=np.float32, order=1, mode=border) for c in range(3)]
    return np.stack(planes, axis=-1)
