"""Makes imagecorruptions.json: what the reference corruptions do to fixed pictures, as statistics.

The reference is imagecorruptions 1.1.2 (PyPI, Apache-2.0), a port of the ImageNet-C authors' code to any picture size. It needs older
packages than ours. In an environment of its own, with Python 3.11:

    pip install imagecorruptions==1.1.2 numpy==1.26.4 scipy==1.11.4 scikit-image==0.20.0 opencv-python==4.10.0.84 pillow==13.0.0
    python make_imagecorruptions.py

Two of its corruptions are not taken as they are:
- glass_blur calls scikit-image with `multichannel`, which is now `channel_axis`: translated, same result.
- elastic_transform has constants of its own and leaves out the affine map. The reference here is the authors' description with their
  constants (ImageNet-C, 244 px), made of OpenCV and scikit-image.

`pixels` holds some values of the first picture, for those whose draws can be repeated from numpy's legacy stream, which is frozen.

The tests import this file: outside of `main` and `_elastic` it needs numpy, scipy and Pillow only.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import laplace

SIZE = 224
FIXED = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
"""Corruptions without any random draw."""
SEEDS = {"glass_blur": 2, "fog": 30, "snow": 10, "frost": 20, "motion_blur": 12, "elastic_transform": 8}
"""How many draws are averaged; of those not named, 4. The tests may take fewer."""


REPEATED = (*FIXED, "gaussian_noise", "shot_noise", "glass_blur", "motion_blur", "snow", "fog")
"""Corruptions that are compared pixel by pixel."""
LEGACY_SEED = 5
GRID = np.s_[20::60, 20::60]


@cache
def pictures() -> list[np.ndarray]:
    """Three pictures uint8 [224, 224, 3]: shapes on a gradient, a texture of many scales, a dark scene with fine stripes."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    shapes = Image.fromarray(np.stack([200 * x + 30, 180 * y + 40, 160 - 90 * x * y], -1).astype(np.uint8))
    draw = ImageDraw.Draw(shapes)
    draw.ellipse((30, 40, 120, 130), fill=(220, 60, 40))
    draw.rectangle((110, 120, 200, 190), fill=(30, 90, 200))
    draw.polygon([(150, 20), (210, 100), (130, 90)], fill=(250, 240, 120))
    draw.line((0, 200, 223, 150), fill=(10, 10, 10), width=3)

    rng, texture = np.random.default_rng(0), np.full((SIZE, SIZE, 3), 120.0)
    for cells, strength in ((4, 60), (14, 40), (56, 25), (224, 12)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        texture += strength * (np.asarray(coarse.resize((SIZE, SIZE), Image.BILINEAR)) / 127.5 - 1)

    dark = Image.fromarray((20 + 60 * (1 - y))[..., None].repeat(3, -1).astype(np.uint8))
    draw = ImageDraw.Draw(dark)
    for i in range(0, 100, 6):
        draw.rectangle((20 + i, 30, 22 + i, 110), fill=(180, 170, 150))
    draw.ellipse((120, 110, 210, 200), fill=(60, 120, 70), outline=(230, 230, 230))
    draw.rectangle((0, 180, 90, 223), fill=(0, 0, 0))
    return [np.asarray(shapes), np.clip(texture, 0, 255).astype(np.uint8), np.asarray(dark)]


def statistics(pixels: np.ndarray, clean: np.ndarray) -> list[float]:
    """Of pixels [h, w, 3], in levels of 255: mean, standard deviation, mean absolute difference to `clean`, mean absolute Laplacian."""
    values = pixels.astype(np.float64)
    detail = np.mean([np.abs(laplace(values[..., c])).mean() for c in range(3)])
    return [values.mean(), values.std(), np.abs(values - clean).mean(), detail]


def table(corrupt: Callable[[np.ndarray, str, int, int], np.ndarray], names: tuple[str, ...], seeds: Callable[[str], int]) -> dict:
    """{corruption: [[mean and standard error over draws of each statistic] for severities 1 ... 5]}, the mean over pictures."""
    found: dict[str, list] = {}
    for name in names:
        found[name] = []
        for severity in range(1, 6):
            drawn = [
                np.mean([statistics(corrupt(p, name, severity, 100 * seed + n), p) for n, p in enumerate(pictures())], axis=0)
                for seed in range(seeds(name))
            ]
            error = np.std(drawn, axis=0, ddof=1) / len(drawn) ** 0.5 if len(drawn) > 1 else np.zeros(4)
            found[name].append([[round(float(v), 4) for v in np.mean(drawn, axis=0)], [round(float(v), 4) for v in error]])
        print(name, found[name][2], file=sys.stderr, flush=True)
    return found


def draws(name: str) -> int:
    return 1 if name in FIXED else SEEDS.get(name, 4)


def _elastic(pixels: np.ndarray, severity: int) -> np.ndarray:
    """Section 3 of the paper with the authors' constants: a random affine map, then a smooth random displacement."""
    import cv2
    from scipy.ndimage import map_coordinates
    from skimage.filters import gaussian

    pull, sigma, skew = (
        244 * np.array([(2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)])[severity - 1]
    )
    corners = np.array([(SIZE // 2 + a, SIZE // 2 + b) for a, b in ((74, 74), (74, -74), (-74, -74))], dtype=np.float32)
    moved = corners + np.random.uniform(-skew, skew, (3, 2)).astype(np.float32)
    turned = cv2.warpAffine(
        pixels.astype(np.float32), cv2.getAffineTransform(corners, moved), (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT_101
    )
    dx, dy = (pull * gaussian(np.random.uniform(-1, 1, (SIZE, SIZE)), sigma, mode="reflect", truncate=3) for _ in range(2))
    y, x = np.mgrid[:SIZE, :SIZE]
    planes = [map_coordinates(turned[..., c], [y + dy, x + dx], order=1, mode="reflect") for c in range(3)]
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def main() -> None:
    from importlib.metadata import version

    import imagecorruptions
    import skimage.filters
    from imagecorruptions import corruptions

    def blurred(image, sigma, multichannel=False, **more):
        return skimage.filters.gaussian(image, sigma, channel_axis=-1 if multichannel else None, **more)

    corruptions.gaussian = blurred

    def corrupt(pixels: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
        np.random.seed(seed)
        return _elastic(pixels, severity) if name == "elastic_transform" else imagecorruptions.corrupt(pixels, severity, name)

    packages = ("imagecorruptions", "numpy", "scipy", "scikit-image", "opencv-python", "pillow")
    content = {
        "made with": {name: version(name) for name in packages},
        "values": "by corruption and severity: [mean, standard deviation, difference to the clean one, Laplacian], their standard errors",
        "clean": [round(float(v), 4) for v in np.mean([statistics(p, p) for p in pictures()], axis=0)],
        "pixels": {name: [corrupt(pictures()[0], name, s, LEGACY_SEED)[GRID].ravel().tolist() for s in range(1, 6)] for name in REPEATED},
        "table": table(corrupt, tuple(imagecorruptions.get_corruption_names()), draws),
    }
    text = re.sub(r"\n {3,}| {2}(?=])|\n {2,}(?=\])", "", json.dumps(content, indent=1))  # a line a corruption
    Path(__file__).with_name("imagecorruptions.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
