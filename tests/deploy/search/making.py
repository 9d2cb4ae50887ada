"""A model that can be computed by hand, pictures of plain colours, and an index of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {
    "red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40), "purple": (150, 40, 170),
    "orange": (240, 140, 30), "cyan": (40, 200, 220), "pink": (250, 130, 180), "brown": (120, 70, 30), "grey": (128, 128, 128),
}  # fmt: skip
DIM = 12


def embed(rgb: np.ndarray) -> np.ndarray:
    """[n, 3] in 0..1 -> unit [n, 12]: sines of the channels, so that different colours have different directions."""
    waves = np.concatenate([np.sin(np.pi * rgb), np.cos(np.pi * rgb), np.sin(2 * np.pi * rgb), rgb], axis=1)
    return (waves / np.linalg.norm(waves, axis=1, keepdims=True)).astype(np.float32)


class ColourModel:
    """Sees the mean colour; reads the names of colours (their mean), everything else as grey."""

    logit_scale = 30.0
    embed_dim = DIM

    def __init__(self) -> None:
        self.seen = 0

    def encode_image(self, images: list[Image.Image]) -> np.ndarray:
        self.seen += len(images)
        return embed(np.stack([np.asarray(image.convert("RGB")).reshape(-1, 3).mean(axis=0) / 255 for image in images]))

    def encode_text(self, texts: list[str]) -> np.ndarray:
        rows = []
        for text in texts:
            named = [COLOURS[word] for word in text.lower().replace(".", " ").split() if word in COLOURS] or [COLOURS["grey"]]
            rows.append(np.mean(named, axis=0) / 255)
        return embed(np.stack(rows))


ABOUT = {"fingerprint": "colours-1", "model": "colours"}


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (40, 30), mark: int = 0) -> None:
    """A plain picture; `mark` makes the bytes of equal colours differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = np.full((size[1], size[0], 3), colour, np.uint8)
    made.reshape(-1)[: mark % made.size] ^= 1
    Image.fromarray(made).save(path)


def folder_of(folder: Path, count: int = 40) -> Path:
    """`count` pictures `red/0.png`, `green/1.png`, ... of slightly different shades."""
    names = list(COLOURS)
    for i in range(count):
        name = names[i % len(names)]
        shade = np.clip(np.asarray(COLOURS[name]) + (i // len(names)) * 4, 0, 255)
        picture(folder / name / f"{i}.png", tuple(int(c) for c in shade), mark=i)
    return folder
