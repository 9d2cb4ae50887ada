"""Small sources and quick encoders for the tests of the guides."""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clipling.data.pairs import Location, Pairs, Row, hash_bytes
from clipling.guides.rows import Rows, unit


def source(folder: Path, count: int = 40, size: int = 20, broken: tuple[int, ...] = (), seed: int = 0) -> Pairs:
    """`count` random pictures with one to three captions; those in `broken` cannot be decoded."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows, hashes = [], []
    for i in range(count):
        held = io.BytesIO()
        # smooth pictures: noise of every pixel would make all of them alike to any encoder
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        small.resize((size + i % 3, size)).save(held, "PNG")
        content = b"not a picture" + bytes([i]) if i in broken else held.getvalue()
        path = folder / f"{i:03d}.png"
        path.write_bytes(content)
        captions = [f"caption {n} of picture {i}" for n in range(1 + i % 3)]
        rows.append(Row(f"{i:03d}.png", captions, Location(str(path))))
        hashes.append(hash_bytes(content))
    return Pairs.from_rows("toy", rows, hashes)


class ToyImages:
    """An image encoder of one random matrix. Its rows depend on the batch, as a real one's last bits do."""

    licence, weights, device = "toy", "1", "cpu"

    def __init__(self, dim: int = 24, size: int = 8, pause: float = 0.0) -> None:
        self.name, self.dim, self.pause = "toy images", dim, pause
        half = [0.5, 0.5, 0.5]
        self.preprocess = {"size": size, "mode": "RGB", "mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "squash"}
        self.matrix = torch.randn(3 * size * size, dim, generator=torch.Generator().manual_seed(0))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.pause)
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (3, self.preprocess["size"], self.preprocess["size"])
        rows = (images.float() / 127.5 - 1).reshape(len(images), -1) @ self.matrix
        return torch.nn.functional.normalize(rows + 1e-3 * rows.mean(0), dim=1)


class ToyTexts:
    """A text encoder that hashes words."""

    licence, weights, device = "toy", "2", "cpu"

    def __init__(self, dim: int = 16, pause: float = 0.0) -> None:
        self.name, self.dim, self.pause = "toy texts", dim, pause

    def encode(self, texts: list[str]) -> np.ndarray:
        time.sleep(self.pause)
        rows = np.stack([sum(self._word(word) for word in text.split()) for text in texts])
        return unit((rows + 1e-3 * rows.mean(0)).astype(np.float32))

    def _word(self, word: str) -> np.ndarray:
        seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little")
        return np.random.default_rng(seed).normal(size=self.dim)


def unit_rows(count: int, dim: int, seed: int = 0, dtype: type = np.float16) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, dim))).astype(dtype)


def rows_of(array: np.ndarray) -> Rows:
    return Rows([array], len(array))


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def brute_force(features, rows, links, valid, k, owner=None):
    """The k nearest allowed training pairs by one fp64 inner product at a time: a slow, independent definition."""
    owner = np.arange(len(features)) if owner is None else owner
    usable = np.zeros(len(valid), bool)
    usable[rows] = valid[rows]
    columns = np.flatnonzero(usable[owner])
    exact = np.asarray(features, dtype=np.float64)
    ids = np.full((len(features), k), -1)
    sims = np.full((len(features), k), -np.inf)
    for q in columns:
        dots = (exact[columns] * exact[q]).sum(axis=1)
        best: dict[int, float] = {}
        mine = set(links[owner[q]])
        for column, dot in zip(columns, dots):
            pair = int(owner[column])
            if pair != owner[q] and not mine & set(links[pair]):
                best[pair] = max(best.get(pair, -np.inf), dot)
        nearest = sorted(best, key=lambda pair: (-best[pair], pair))[:k]
        ids[q, : len(nearest)] = nearest
        sims[q, : len(nearest)] = [best[pair] for pair in nearest]
    return ids, sims
