"""The control for what neighbours add: every pair gets the neighbours of another, fixed, random pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clipling.data import draw
from clipling.guides.neighbours import Table
from clipling.guides.stored import caption_rows

TRIES = 64


def random_tables(
    tables: Sequence[Table], offsets: np.ndarray, links: Sequence[Sequence[int]], seed: int
) -> tuple[list[Table], dict[str, int]]:
    """The tables with their rows exchanged by one `derangement`, and how many pairs still have a forbidden neighbour.

    Every pair is somebody's neighbour as often as before, and the two spaces of a pair still belong together (both are those of one
    other pair): only the tie between a pair and its neighbours is cut. In a table by caption, caption c of pair i gets the row
    of caption c (modulo their number) of the other pair.
    """
    by_pair = [_by_pair(table, offsets) for table in tables]
    source, left = derangement(by_pair, links, seed)
    made = []
    for table in tables:
        rows = source
        if table.info["by_caption"]:
            pair = np.repeat(np.arange(len(source)), np.diff(offsets))
            place = np.arange(len(pair)) - offsets[pair]
            rows = offsets[source[pair]] + place % np.maximum(np.diff(offsets)[source[pair]], 1)
        made.append(replace(table, ids=table.ids[rows], sims=table.sims[rows]))
    return made, {"forbidden": left}


def derangement(tables: Sequence[np.ndarray], links: Sequence[Sequence[int]], seed: int) -> tuple[np.ndarray, int]:
    """int64 [P]: for every pair the other pair whose neighbours it gets, a permutation without fixed points of the pairs that have
    neighbours in all of `tables` ([P, ...] ids, -1 = none); the remaining pairs keep their own rows.

    No pair gets itself or a pair that it shares a class with as neighbour, as far as exchanges of two sources can avoid it: the
    second number returned counts those that do.
    """
    pairs = len(tables[0])
    rows = np.flatnonzero(np.all([(ids.reshape(pairs, -1) >= 0).any(axis=1) for ids in tables], axis=0))
    source = np.arange(pairs, dtype=np.int64)
    if len(rows) < 2:
        return source, 0
    cycle = rows[draw.order(seed, 0, len(rows))]
    source[cycle] = np.roll(cycle, -1)
    forbids = _Forbidden(tables, links)
    left = 0
    for pair in rows[[forbids(i, source[i]) for i in rows.tolist()]].tolist():
        if forbids(pair, source[pair]):  # an earlier exchange may have helped
            left += not _exchange(pair, rows, source, forbids, seed)
    return source, left


def _exchange(pair: int, rows: np.ndarray, source: np.ndarray, forbids: _Forbidden, seed: int) -> bool:
    """Exchanges the sources of `pair` and another such that both may have what they get; random ones are tried first."""
    tried = rows[draw.integers(seed, np.arange(TRIES), np.full(TRIES, pair), "derangement", len(rows))]
    for other in [*tried.tolist(), *rows.tolist()]:
        if not forbids(pair, source[other]) and not forbids(other, source[pair]):
            source[pair], source[other] = source[other], source[pair]
            return True
    return False


class _Forbidden:
    """Whether a pair must not get the neighbours of `source`: it is the source, or is or resembles one of the neighbours."""

    def __init__(self, tables: Sequence[np.ndarray], links: Sequence[Sequence[int]]) -> None:
        self.neighbours = np.concatenate([ids.reshape(len(ids), -1) for ids in tables], axis=1)
        self.links = links

    def __call__(self, pair: int, source: int) -> bool:
        if pair == source:
            return True
        found = self.neighbours[source]
        if (found == pair).any():
            return True
        mine = set(self.links[pair])
        return bool(mine) and any(not mine.isdisjoint(self.links[i]) for i in found.tolist() if i >= 0)


def _by_pair(table: Table, offsets: np.ndarray) -> np.ndarray:
    """ids [P, m] of a table: of a table by caption all neighbours of all captions of each pair."""
    if not table.info["by_caption"]:
        return table.ids
    count = np.diff(offsets)
    found = np.full((len(count), int(count.max(initial=0)), table.k), -1, dtype=np.int64)
    pair = np.repeat(np.arange(len(count)), count)
    rows = caption_rows(offsets, np.arange(len(count)))
    found[pair, rows - offsets[pair]] = table.ids[rows]
    return found.reshape(len(count), -1)
