"""Blur. Every function takes pixels uint8 [h, w, 3] and gives float32 [h, w, 3] in 0 to 255, before clipping."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from scipy import fft
from scipy.ndimage import gaussian_filter


def defocus_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """As of a lens out of focus: the mean over a disk, whose edge is smoothed."""
    radius, smooth = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1]
    return _convolved(pixels, disk(radius, smooth))


def disk(radius: int, smooth: float) -> np.ndarray:
    """float64 [k, k]: a disk of sum 1, smoothed by a Gaussian of 3 x 3 taps up to radius 8, of 5 x 5 above.

    Disks from radius 8 on touch the edge of their kernel, where smoothing mirrors them: the sum is 1.01, and so the pictures of
    severities 4 and 5 are brighter by one percent. The authors' are, too.
    """
    reach = max(8, radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    flat = (x**2 + y**2 <= radius**2).astype(np.float64)
    taps = 1 if radius <= 8 else 2
    return gaussian_filter(flat / flat.sum(), smooth, mode="mirror", truncate=taps / smooth)  # OpenCV's border


def _convolved(pixels: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """float32 [h, w, 3]: the convolution with a symmetric odd kernel; borders are mirrored about the last pixel."""
    height, width = pixels.shape[:2]
    reach = len(kernel) // 2
    planes = np.pad(pixels.transpose(2, 0, 1).astype(np.float32), ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    shape = [fft.next_fast_len(side, real=True) for side in planes.shape[1:]]
    spectrum = fft.rfft2(planes, shape) * fft.rfft2(kernel.astype(np.float32), shape)
    whole = fft.irfft2(spectrum, shape)
    # Row 2 * reach is the first whose sum touches no padding of the transform.
    return whole[:, 2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width].transpose(1, 2, 0)


def glass_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """As through frosted glass: blurred, pixels replaced by one nearby, blurred again.

    The authors mean to swap two pixels, but their assignment copies the nearby pixel to both places. ImageNet-C was made so, and
    so is this.
    """
    sigma, reach, times = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    found = _gaussian(pixels, sigma).astype(np.uint8)  # cut off, as the authors do
    height, width = pixels.shape[:2]
    index = np.arange(height * width)
    for _ in range(times):
        moves = rng.integers(-reach, reach, (2, height - 2 * reach, width - 2 * reach))
        index = index[copied(height, width, reach, moves)]
    return _gaussian(found.reshape(-1, 3)[index].reshape(pixels.shape), sigma)


def copied(height: int, width: int, reach: int, moves: np.ndarray) -> np.ndarray:
    """int64 [height * width]: which pixel stands where, after each took in turn the value of the pixel `moves` away from it.

    The turn goes from the last pixel to the first, over all but a border: rows reach + 1 ... height - reach, columns likewise.
    moves [2, height - 2 * reach, width - 2 * reach]: down and to the right, from -reach to reach - 1.
    """
    number = np.arange(height * width).reshape(height, width)
    inner = np.s_[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1]
    source, mine = number.copy(), np.zeros((height, width), bool)
    source[inner] += moves[0] * width + moves[1]
    mine[inner] = True
    source, mine = source.ravel(), mine.ravel()
    # A source later in the picture had its turn before and shows its own source: such chains are followed, twice as far each time.
    start = number.ravel()
    ahead = np.where(mine[source] & (source > start), source, start)
    while True:
        further = ahead[ahead]
        if np.array_equal(further, ahead):
            return source[ahead]
        ahead = further


def _gaussian(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """float32 [h, w, 3]; the border continues with its last pixel."""
    return gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0), mode="nearest")


def motion_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """As of a moving camera: smeared to one side at an angle within 45 degrees of the horizontal."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return smeared(pixels.astype(np.float32), radius, sigma, rng.uniform(-45, 45))


def smeared(values: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """float32 of values float32 [h, w, ...]: the mean of shifted copies with the weights of one half of a Gaussian.

    Copy i of 2 * radius + 1 comes from i pixels away at `angle` degrees (rounded to whole pixels), as in ImageMagick's motion blur.
    Borders continue with their last pixel.
    """
    height, width = values.shape[:2]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    down = np.ceil(steps * math.sin(math.radians(angle)) - 0.5).astype(int)
    right = np.ceil(steps * math.cos(math.radians(angle)) - 0.5).astype(int)
    reach = [(-min(0, int(move.min())), max(0, int(move.max()))) for move in (down, right)]
    padded = np.pad(values, reach + [(0, 0)] * (values.ndim - 2), mode="edge")
    total, part = np.zeros_like(values), np.empty_like(values)
    for weight, y, x in zip(weights, down + reach[0][0], right + reach[1][0]):
        if weight > 1e-7:
            total += np.multiply(padded[y : y + height, x : x + width], weight, out=part)
    return total


def zoom_blur(pixels: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """As of moving towards the scene: the mean of the picture and its enlargements about the centre."""
    last, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    factors = np.arange(1, last, step)
    picture, total = Image.fromarray(pixels), pixels.astype(np.float32)
    for factor in factors:
        total += np.asarray(zoomed(picture, float(factor)))
    return total / np.float32(len(factors) + 1)


def zoomed(picture: Image.Image, factor: float) -> Image.Image:
    """The middle of a picture (mode RGB or F) enlarged to the size of all of it, bilinear; corner pixels of the part stay corners."""
    starts, scales = [], []
    for side in picture.size:
        part = math.ceil(side / factor)
        enlarged = max(side, round(part * factor))
        scale = (part - 1) / (enlarged - 1)
        # Pillow's box counts from the edges of pixels, not from their centres.
        starts.append((side - part) // 2 + (enlarged - side) // 2 * scale + 0.5 - 0.5 * scale)
        scales.append(scale)
    ends = [min(side, start + scale * side) for side, start, scale in zip(picture.size, starts, scales)]
    return picture.resize(picture.size, Image.Resampling.BILINEAR, box=(*starts, *ends))
