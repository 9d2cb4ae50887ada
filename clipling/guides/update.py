"""Bringing an exact table up to date when pairs were added, changed or removed: only what is new is compared with everything.

Of a pair that was in the older table the k nearest among the old pairs are known; those among the new ones are found and both are
merged. New pairs are compared with all, and so are pairs that lost one of their neighbours. As similarities do not depend on what
they were computed with, the result is the table computed anew, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clipling.errors import UserError
from clipling.guides.search import ExactSearch, exact_dots
from clipling.guides.table import Table

CHECKED = 4096  # rows worked on together


@dataclass(frozen=True)
class Base:
    """An older exact table by pair, and what became of its pairs.

    kept int64 [P_old]: the present number of each of its pairs, rising; -1 for those that are gone, or whose features changed.
    Links between pairs that were there may be added, not removed.
    """

    table: Table
    kept: np.ndarray

    def __post_init__(self) -> None:
        info, here = self.table.info, self.kept[self.kept >= 0]
        if info["method"] != "exact" or info["cap"] is not None or info["by_caption"]:
            raise UserError(
                "only an exact table by pair without a cap can be brought up to date; "
                f"this one has method {info['method']}, cap {info['cap']}{', and is by caption' if info['by_caption'] else ''}. "
                "Make it anew."
            )
        if len(self.kept) != len(self.table.ids):
            raise ValueError(f"{len(self.kept)} numbers for a table of {len(self.table.ids)} pairs")
        if (np.diff(here) <= 0).any():  # where two pairs are equally near, the smaller number was kept
            raise UserError("the pairs of the older table come in another order now, so it cannot be brought up to date. Make it anew.")


class UpdateSearch:
    """A `Search` that knows the older table. columns [C, d], owner int64 [C] (one column a pair), links: as for `ExactSearch`."""

    method = "exact"

    def __init__(
        self, base: Base, exact: Callable[..., ExactSearch], columns: np.ndarray, owner: np.ndarray, links: Sequence[Sequence[int]]
    ) -> None:
        self.columns, self.owner = columns, owner
        pairs = len(links)
        self.ids, self.sims = _renumbered(base, pairs)
        known = np.zeros(pairs, dtype=bool)
        known[base.kept[(base.kept >= 0) & (base.table.ids[:, 0] >= 0)]] = True
        here = np.zeros(pairs, dtype=bool)
        here[owner] = True
        fresh = ~known[owner]
        # A pair whose neighbour is gone, or is none any more, must be asked again; the others keep theirs.
        self.lost = _lost(self.ids, known & here, links)
        self.known = known
        self._check()
        self.exact = exact(columns, owner)
        self.fresh = exact(columns[fresh], owner[fresh])

    def of_columns(self, numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Search.of_columns`."""
        if count > self.ids.shape[1]:
            raise UserError(f"k = {count}, but the older table holds {self.ids.shape[1]} neighbours: it cannot be brought up to date")
        pairs = self.owner[numbers]
        ids, sims = np.full((len(numbers), count), -1, dtype=np.int64), np.full((len(numbers), count), -np.inf)
        again = ~self.known[pairs] | self.lost[pairs]
        if again.any():
            ids[again], sims[again] = self.exact.of_columns(numbers[again], count)
        if not again.all():
            queries, of = np.asarray(self.columns[numbers[~again]]), pairs[~again]
            found = self.fresh.top(queries, of, count)
            ids[~again], sims[~again] = _merged(found, (self.ids[of], self.sims[of]), count)
        return ids, sims

    def _check(self) -> None:
        """Raises UserError unless the old similarities are those of the present features."""
        place = np.full(len(self.known), -1)
        place[self.owner] = np.arange(len(self.owner))
        pairs = np.flatnonzero(self.known & ~self.lost & (place >= 0))
        for start in range(0, len(pairs), CHECKED):
            some = pairs[start : start + CHECKED]
            row, slot = np.nonzero(self.ids[some] >= 0)
            now = exact_dots(self.columns, place[some[row]], self.columns, place[self.ids[some[row], slot]])
            if (now != self.sims[some[row], slot]).any():
                raise UserError(
                    "the features of the older pairs are not those that the older table was made from (another encoder, or another "
                    "mean was subtracted), so it cannot be brought up to date. Make it anew."
                )


def _renumbered(base: Base, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """The older table by present numbers: ids int64 [pairs, k] (-1 = none, -2 = gone) and sims."""
    old, kept = base.table, base.kept
    number = np.append(np.where(kept >= 0, kept, -2), -1)  # the last is what -1 becomes
    ids, sims = np.full((pairs, old.k), -1, dtype=np.int64), np.full((pairs, old.k), -np.inf)
    there = kept >= 0
    ids[kept[there]], sims[kept[there]] = number[old.ids[there]], old.sims[there]
    return ids, sims


def _lost(ids: np.ndarray, known: np.ndarray, links: Sequence[Sequence[int]]) -> np.ndarray:
    """bool [P]: known pairs that have a neighbour which takes no part any more, or shares a class with them."""
    absent = (ids == -2) | ((ids >= 0) & ~known[np.maximum(ids, 0)])
    lost = known & absent.any(axis=1)
    for pair in np.flatnonzero(known & ~lost).tolist():
        own = links[pair]
        if own and any(not set(own).isdisjoint(links[other]) for other in ids[pair].tolist() if other >= 0):
            lost[pair] = True
    return lost


def _merged(found: tuple[np.ndarray, np.ndarray], before: tuple[np.ndarray, np.ndarray], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest of two lists for each query, sorted by (-similarity, pair)."""
    ids, sims = (np.concatenate(both, axis=1) for both in zip(found, before))
    order = np.lexsort((ids, -sims), axis=1)[:, :count]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(sims, order, axis=1)
