"""Exact nearest neighbours: fast candidates, then a ranking that depends on nothing but the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from clipling.guides.candidates import HELD, Chooser, TooMany
from clipling.guides.columns import Columns
from clipling.guides.precision import NORM_SLACK

DOTS_AT_ONCE = 256
QUERIES = 2048  # for which a tile of columns is read once


@dataclass(frozen=True)
class Excluded:
    """Which columns are never neighbours of a pair: its own, and those of pairs of its "same" classes.

    owner int64 [C], ascending: the pair of each column. links: for each pair the ids of its classes (`Pairs.links`).
    """

    owner: np.ndarray
    links: Sequence[Sequence[int]]
    members: dict[int, np.ndarray]

    @classmethod
    def of(cls, owner: np.ndarray, links: Sequence[Sequence[int]]) -> Excluded:
        members: dict[int, list[int]] = {}
        for column, pair in enumerate(owner.tolist()):
            for link in links[pair]:
                members.setdefault(link, []).append(column)
        return cls(owner, links, {link: np.array(columns, dtype=np.int64) for link, columns in members.items()})

    def columns(self, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row, column) numbers, int64 [m] each, of all that is excluded for queries of the given pairs.

        Raises TooMany where several pairs of large classes exclude more than `HELD`.
        """
        if len(pairs) > 1 and sum(len(self.members.get(i, ())) for pair in np.asarray(pairs).tolist() for i in self.links[pair]) > HELD:
            raise TooMany
        first, last = np.searchsorted(self.owner, pairs, side="left"), np.searchsorted(self.owner, pairs, side="right")
        count = last - first
        rows = [np.repeat(np.arange(len(count)), count)]
        columns = [np.arange(count.sum()) + np.repeat(first - np.cumsum(count) + count, count)]
        for row, pair in enumerate(np.asarray(pairs).tolist()):
            for link in self.links[pair]:
                if link in self.members:
                    columns.append(self.members[link])
                    rows.append(np.full(len(columns[-1]), row))
        return np.concatenate(rows), np.concatenate(columns)

    @property
    def most(self) -> int:
        """The largest number of columns that a query may lose."""
        own = int(np.unique(self.owner, return_counts=True)[1].max(initial=0))
        return own + max((sum(len(self.members.get(i, ())) for i in ids) for ids in self.links), default=0)


class Search(Protocol):
    """Finds the nearest allowed pairs of its own columns."""

    method: str

    def of_columns(self, numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """For the columns of the numbers int64 [B]: pair numbers int64 [B, count] and similarities float64, nearest first, filled up
        with -1 and -inf where there are fewer."""
        ...


class ExactSearch:
    """All columns are compared with every query.

    The similarity of two rows is their inner product summed in fp64 in a fixed order, and neighbours are sorted by
    (-similarity, pair): neither depends on the size of a block, the number of threads or the device. A matrix product in the quickest
    precision of the device only chooses candidates; it is off by at most a margin, so every column that could be among the nearest is
    ranked.

    columns [C, d]: unit rows (fp16, fp32 or fp64), in memory or memory-mapped: they are read a tile at a time, once for `QUERIES` queries.
    owner int64 [C], ascending: the pair of each column.
    scratch: a folder of these columns only, where they may be kept as they are multiplied (`Columns`).
    Memory: a tile of columns, its similarities to some queries (`SCORE_BYTES`), and what `Columns` keeps.
    """

    method = "exact"

    def __init__(
        self,
        columns: np.ndarray,
        owner: np.ndarray,
        links: Sequence[Sequence[int]],
        device: str = "cpu",
        scratch: Path | None = None,
    ) -> None:
        check_unit(columns)
        self.columns, self.prepared = columns, Columns(columns, device, scratch=scratch)
        self.owner = np.asarray(owner, dtype=np.int64)
        self.excluded = Excluded.of(self.owner, links)
        self.per_pair = most_of_one(self.owner)
        self.choose = Chooser(device)
        self.prepared.keep(self.choose.precision.dtype)

    def top(self, queries: np.ndarray, pairs: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Queries [B, d] of the given pairs int64 [B] -> as `Search.of_columns`.

        Two columns of one pair count as one neighbour, the nearer of the two.
        """
        ids = np.full((len(queries), count), -1, dtype=np.int64)
        sims = np.full((len(queries), count), -np.inf)
        need = min((count - 1) * self.per_pair + 1, len(self.owner))

        def some(part: slice) -> None:
            rows, columns = self.choose(queries[part], self.prepared.tiles, len(self.owner), self.excluded.columns(pairs[part]), need)
            rank_pairs(queries[part], rows, self.columns, columns, self.owner, ids[part], sims[part])

        if len(self.owner):
            in_parts(len(queries), QUERIES, some)
        return ids, sims

    def of_columns(self, numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Search.of_columns`."""
        return self.top(np.asarray(self.columns[numbers]), self.owner[numbers], count)


def in_parts(count: int, most: int, work: Callable[[slice], None]) -> None:
    """Does `work` for so many queries, at most `most` at a time, and for fewer as long as it raises TooMany; a single one may not."""
    start, at_once = 0, most
    while start < count:
        stop = min(count, start + at_once)
        try:
            work(slice(start, stop))
        except TooMany:
            if stop - start == 1:
                raise
            at_once = max(1, (stop - start) // 2)
        else:
            start, at_once = stop, min(most, 2 * at_once)


def rank_pairs(
    queries: np.ndarray,
    rows: np.ndarray,
    features: np.ndarray,
    columns: np.ndarray,
    owner: np.ndarray,
    ids: np.ndarray,
    sims: np.ndarray,
) -> None:
    """Fills ids int64 [B, count] and sims float64 with the best of the candidates (rows[m], columns[m]) of each query."""
    dots = exact_dots(queries, rows, features, columns)
    best = np.lexsort((columns, -dots, rows))
    rows, found, dots = rows[best], owner[columns[best]], dots[best]
    # of several columns of one pair the first, which is the nearest
    first = np.sort(np.unique(rows * (int(owner.max(initial=0)) + 1) + found, return_index=True)[1])
    rows, found, dots = rows[first], found[first], dots[first]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows, side="left")
    kept = place < ids.shape[1]
    ids[rows[kept], place[kept]] = found[kept]
    sims[rows[kept], place[kept]] = dots[kept]


def exact_dots(one: np.ndarray, rows: np.ndarray, other: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """float64 [m]: inner products of one[rows[i]] and other[columns[i]], each summed in an order that depends on d only."""
    dots = np.empty(len(rows))
    for start in range(0, len(rows), DOTS_AT_ONCE):
        part = slice(start, start + DOTS_AT_ONCE)
        # by torch, whose conversion from fp16 is ten times as quick as numpy's
        product = torch.from_numpy(one[rows[part]]).double().mul_(torch.from_numpy(other[columns[part]]).double()).numpy()
        # numpy sums the rows of a contiguous array pairwise, by a scheme of their length alone; a matrix product would not do
        dots[part] = np.add.reduce(product, axis=1)
    return dots


def most_of_one(owner: np.ndarray) -> int:
    """The largest number of columns of one pair, at least 1."""
    return int(np.unique(owner, return_counts=True)[1].max(initial=1))


def check_unit(rows: np.ndarray) -> None:
    """Raises ValueError unless rows [n, d] are unit rows up to the rounding of fp16."""
    for start in range(0, len(rows), 8192):
        part = rows[start : start + 8192].astype(np.float32)
        norms = np.sqrt(np.einsum("nd,nd->n", part, part))
        if len(norms) and not np.abs(norms - 1).max() <= NORM_SLACK:
            row = start + int(np.abs(norms - 1).argmax())
            raise ValueError(f"expected unit rows; row {row} has norm {norms[row - start]:.4f}")
