"""A toy source: coloured shapes with true captions, made in a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (230, 210, 40), "black": (10, 10, 10)}
GROUNDS = {"white": (250, 250, 250), "grey": (128, 128, 128), "pink": (250, 170, 190)}
SHAPES = ("disc", "square", "bar")


def toy_folder(folder: Path, count: int = 120, size: int = 40, seed: int = 0) -> Path:
    """`count` PNG pictures with two captions each in .txt files beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        colour, ground, shape = rng.choice(list(COLOURS)), rng.choice(list(GROUNDS)), rng.choice(SHAPES)
        image = Image.new("RGB", (size, size), GROUNDS[ground])
        draw = ImageDraw.Draw(image)
        x, y, s = (int(v) for v in rng.integers([2, 2, 8], [14, 14, 22]))
        box = (x, y, x + s, y + (s // 3 if shape == "bar" else s))
        (draw.ellipse if shape == "disc" else draw.rectangle)(box, fill=COLOURS[colour])
        image.save(folder / f"{i:04d}.png")
        (folder / f"{i:04d}.txt").write_text(f"a {colour} {shape} on {ground}, number {i}\n{shape} in {colour}, picture {i}\n")
    return folder
