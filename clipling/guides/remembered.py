"""Features that are computed once and kept on disk: what a frozen model makes of inputs that never vary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from clipling.guides.progress import Progress, silent
from clipling.guides.rows import save_array

SHARD = 8192
BLOCK = 256


class Remembered:
    """float32 [n, d] in shards of 8,192 rows, memory-mapped: `remembered[rows]` is a copy of those rows.

    Rows are always computed in the same blocks, so they are the same bits whether a run was interrupted or not.
    """

    def __init__(self, shards: list[np.ndarray]) -> None:
        self.shards = shards

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), self.shards[0].shape[1]), dtype=np.float32)
        shard = rows // SHARD
        for number in np.unique(shard):
            here = shard == number
            found[here] = self.shards[number][rows[here] - number * SHARD]
        return found


def remember(
    folder: Path, count: int, encode: Callable[[np.ndarray], np.ndarray], what: str = "features", progress: Progress | None = None
) -> Remembered:
    """The features of inputs 0 ... count - 1, from `folder` or made by `encode(numbers)`; finished shards are not made again."""
    progress = progress or silent
    shards = []
    for start in range(0, count, SHARD):
        path = folder / f"rows-{start // SHARD:05d}.npy"
        stop = min(count, start + SHARD)
        if not _whole(path, stop - start):
            progress(what, start, count)
            blocks = []
            for first in range(start, stop, BLOCK):
                blocks.append(np.asarray(encode(np.arange(first, min(stop, first + BLOCK))), dtype=np.float32))
                progress(what, min(stop, first + BLOCK), count)
            save_array(path, np.concatenate(blocks))
        shards.append(np.load(path, mmap_mode="r", allow_pickle=False))
    return Remembered(shards)


def _whole(path: Path, rows: int) -> bool:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return found.ndim == 2 and len(found) == rows and found.dtype == np.float32
