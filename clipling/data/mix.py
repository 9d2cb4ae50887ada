"""Several sources in stated shares: the order of an epoch as a pure function of (seed, epoch), like that of one source.

An epoch is as long as the shares allow without showing a pair twice: the source that is used up first is seen whole, of the others a
part, and the next epochs go on with the parts that were not seen. So a pair never meets itself in a batch, and every choice about it
stays a function of (seed, epoch, pair).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipling.data import draw
from clipling.errors import UserError


class Mix:
    """Orders of rows 0 ... P - 1 that belong to several parts.

    counts: int64 [S], pairs of each part in an epoch. length: their sum.
    """

    def __init__(self, parts: Sequence[int] | np.ndarray, weights: Sequence[float]) -> None:
        """parts: [P], the part of each row, 0 ... S - 1. weights: [S], shares of an epoch (their sum need not be 1).

        Raises UserError for weights that are not positive, another number of them, or a part without rows.
        """
        numbers = np.asarray(parts, dtype=np.int64)
        shares = np.asarray(weights, dtype=np.float64)
        if not len(shares) or not np.isfinite(shares).all() or (shares <= 0).any():
            raise UserError(f"data.weights = {list(weights)}: expected a positive number for each source")
        if len(numbers) and numbers.max() >= len(shares):
            raise UserError(f"data.weights = {list(weights)}: there are {numbers.max() + 1} sources, joined by '::'")
        self.rows = [np.flatnonzero(numbers == part) for part in range(len(shares))]
        empty = [part + 1 for part, rows in enumerate(self.rows) if not len(rows)]
        if empty:
            raise UserError(f"data.weights: source number {empty[0]} has no training pairs of its own: leave it out")
        shares = shares / shares.max()  # first: sums of huge weights, and tiny shares of them, are no numbers
        shares = np.maximum(shares / shares.sum(), 1e-200)
        sizes = np.array([len(rows) for rows in self.rows])
        longest = (sizes / shares).min()
        # Rounded down: rounding up could ask for a pair more than there is. A hair more, for shares that are not exact in binary.
        self.counts = np.clip(np.floor(longest * shares + 1e-6).astype(np.int64), 1, sizes)
        self.length = int(self.counts.sum())

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """The rows of an epoch in their order, int64 [length], none of them twice."""
        chosen = np.concatenate([self._chosen(part, seed, epoch) for part in range(len(self.rows))])
        return chosen[draw.order(seed, epoch, len(chosen))]

    def _chosen(self, part: int, seed: int, epoch: int) -> np.ndarray:
        """The rows of one part that an epoch shows: window after window of a permutation, and then of another one."""
        rows, count = self.rows[part], int(self.counts[part])
        windows = len(rows) // count
        shuffle, window = divmod(epoch, windows)
        keys = draw.bits(seed, shuffle, np.arange(len(rows)), f"mix {part}")
        return rows[np.argsort(keys, kind="stable")[window * count : (window + 1) * count]]
