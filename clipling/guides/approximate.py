"""Nearest neighbours above the size at which comparing all with all is sensible: an inverted file whose cells faiss learns.

An inverted file (Sivic and Zisserman 2003) compares a query with the rows of the nearest cells only. All rows are queries here, so a whole
cell of queries is compared at once with the rows of the cells around it, by matrix products; asked one by one, as an index of faiss
does, every query would read all those rows from memory again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipling.errors import missing_extra
from clipling.guides.candidates import Chooser
from clipling.guides.columns import Columns
from clipling.guides.search import ExactSearch, Excluded, check_unit, in_parts, most_of_one, rank_pairs
from clipling.guides.table import save_arrays

LEAST_ROWS = 40  # rows a cell: k-means wants no fewer
CELLS = 1  # times the root of the number of rows: larger cells make larger matrix products, smaller ones are nearer
TRAIN_ROWS = 40  # rows a cell from which the cells are learned
ROUNDS = 10  # of k-means
AIM = 0.95  # share of true neighbours that the cells looked through should hold, on a sample
LEAST_PROBES, MOST_SHARE = 8, 4  # cells looked through: at least so many, at most one in so many
PROBE_SAMPLE = 1000


@dataclass(frozen=True)
class Cells:
    """cell int32 [C]: the cell of each column. near int32 [cells, probes]: the cells looked through for queries of a cell, nearest
    first."""

    cell: np.ndarray
    near: np.ndarray
    version: str

    @property
    def method(self) -> str:
        return f"faiss {self.version}: {len(self.near)} cells, {self.near.shape[1]} looked through"


def learn_cells(columns: np.ndarray, owner: np.ndarray, links: Sequence[Sequence[int]], k: int, path: Path | None = None) -> Cells:
    """Cells of unit rows [C, d], kept at `path` so that several processes have the same.

    As many cells are looked through as hold `AIM` of the k true neighbours of a sample of queries, within bounds.
    Memory: 40 rows a cell in fp32, of about sqrt(C) cells.
    """
    faiss = _faiss()
    try:
        with np.load(path, allow_pickle=False) as file:  # type: ignore[arg-type]
            kept = Cells(file["cell"], file["near"], faiss.__version__)
        if kept.cell.shape == (len(columns),):
            return kept
    except Exception:  # absent, or damaged in one of many ways: it is made again
        pass
    check_unit(columns)
    cells = max(1, min(int(CELLS * np.sqrt(len(columns))), len(columns) // LEAST_ROWS))
    centres = _centres(faiss, columns, cells)
    cell = _nearest_cells(columns, centres)
    most = min(cells, max(LEAST_PROBES, cells // MOST_SHARE))
    near = (centres @ centres.T).fill_diagonal_(torch.inf).topk(most, dim=1).indices.numpy().astype(np.int32)
    made = Cells(cell, near[:, : _probes(columns, owner, links, k, cell, near)], faiss.__version__)
    if path is not None:
        save_arrays(path, cell=made.cell, near=made.near)
    return made


def _centres(faiss: Any, columns: np.ndarray, cells: int) -> torch.Tensor:
    """fp32 [cells, d] unit rows."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    sample = np.sort(np.random.default_rng(0).permutation(len(columns))[: cells * TRAIN_ROWS])
    learned = faiss.Kmeans(columns.shape[1], cells, niter=ROUNDS, spherical=True, seed=0, max_points_per_centroid=TRAIN_ROWS)
    learned.train(np.ascontiguousarray(columns[sample], dtype=np.float32))
    return torch.from_numpy(np.array(learned.centroids).reshape(cells, -1))


def _nearest_cells(columns: np.ndarray, centres: torch.Tensor) -> np.ndarray:
    """int32 [C]. Filled in place: small results kept between large ones that come and go would leave the heap full of holes."""
    cell, start = np.empty(len(columns), dtype=np.int32), 0
    for part in Columns(columns).tiles(torch.float32):
        cell[start : start + len(part)] = (part @ centres.T).argmax(dim=1).numpy()
        start += len(part)
    return cell


def _probes(columns: np.ndarray, owner: np.ndarray, links: Sequence[Sequence[int]], k: int, cell: np.ndarray, near: np.ndarray) -> int:
    """How many of the nearest cells hold `AIM` of the true neighbours of a sample of queries."""
    sample = np.random.default_rng(1).permutation(len(columns))[:PROBE_SAMPLE]
    true, _ = ExactSearch(columns, owner, links).of_columns(sample, k)
    places = []
    for query, pairs in zip(sample.tolist(), true):
        place = np.full(len(near), near.shape[1])
        place[near[cell[query]]] = np.arange(near.shape[1])
        for pair in pairs[pairs >= 0].tolist():
            places.append(place[cell[slice(*np.searchsorted(owner, [pair, pair + 1]))]].min())
    wanted = int(np.quantile(places, AIM, method="higher")) + 1 if places else 1
    return min(near.shape[1], max(LEAST_PROBES, wanted))


class CellSearch:
    """Compares queries with the rows of the cells nearest to their own cell's centre.

    What it finds is ranked as by `ExactSearch`, so only the choice of cells is approximate. columns, owner, links, scratch: as there.
    """

    def __init__(
        self,
        columns: np.ndarray,
        owner: np.ndarray,
        links: Sequence[Sequence[int]],
        cells: Cells,
        scratch: Path | None = None,
    ) -> None:
        self.columns, self.cells = columns, cells
        self.owner = np.asarray(owner, dtype=np.int64)
        self.excluded = Excluded.of(self.owner, links)
        self.per_pair, self.method, self.choose = most_of_one(self.owner), cells.method, Chooser("cpu")
        self.by_cell = np.argsort(cells.cell, kind="stable")
        self.place = np.empty_like(self.by_cell)
        self.place[self.by_cell] = np.arange(len(columns))
        self.first = np.searchsorted(cells.cell[self.by_cell], np.arange(len(cells.near) + 1))
        self.sorted = Columns(columns, order=self.by_cell, scratch=scratch)
        self.sorted.keep(self.choose.precision.dtype)

    def of_columns(self, numbers: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Search.of_columns`. Quick where numbers of one cell come together."""
        ids = np.full((len(numbers), count), -1, dtype=np.int64)
        sims = np.full((len(numbers), count), -np.inf)
        cell = self.cells.cell[numbers]
        for c in np.unique(cell).tolist():
            here = np.flatnonzero(cell == c)

            def of_cell(part: slice, here: np.ndarray = here, c: int = c) -> None:
                mine = numbers[here[part]]
                queries = np.asarray(self.columns[mine])
                rows, columns = self._candidates(queries, self.owner[mine], c, count)
                some, near = np.full((len(mine), count), -1, dtype=np.int64), np.full((len(mine), count), -np.inf)
                rank_pairs(queries, rows, self.columns, columns, self.owner, some, near)
                ids[here[part]], sims[here[part]] = some, near

            in_parts(len(here), len(here), of_cell)
        return ids, sims

    def _candidates(self, queries: np.ndarray, pairs: np.ndarray, cell: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(query, column) numbers out of the cells around one cell."""
        starts, stops = self._runs(cell)
        length = np.cumsum(stops - starts)
        offset = starts - np.append(0, length[:-1])  # of a place from its number among those that are looked through
        rows, barred = self.excluded.columns(pairs)
        at, rising = self.place[barred], np.argsort(starts)
        run = rising[np.searchsorted(starts[rising], at, side="right") - 1]
        there = (at >= starts[run]) & (at < stops[run])
        need = min((count - 1) * self.per_pair + 1, int(length[-1]))

        def tiles(dtype: torch.dtype) -> Iterator[torch.Tensor]:
            return self.sorted.tiles(dtype, list(zip(starts.tolist(), stops.tolist())))

        rows, found = self.choose(queries, tiles, int(length[-1]), (rows[there], (at - offset[run])[there]), need)
        return rows, self.by_cell[found + offset[np.searchsorted(length, found, side="right")]]

    def _runs(self, cell: int) -> tuple[np.ndarray, np.ndarray]:
        """(starts, stops) int64 [r]: the places, sorted by cell, that are looked through for queries of a cell.

        Its own come first: what is found there spares most of the others a closer look.
        """
        cells = np.sort(self.cells.near[cell])
        cells = cells[(self.first[cells] < self.first[cells + 1]) & (cells != cell)]
        new = np.append(True, self.first[cells[1:]] != self.first[cells[:-1] + 1])[: len(cells)]
        last = np.append(new[1:], True)[: len(cells)]
        starts, stops = self.first[cells[new]], self.first[cells[last] + 1]
        return np.append(self.first[cell], starts), np.append(self.first[cell + 1], stops)


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """Share of the true neighbours [n, k] (-1 = none) that were found [n, k]."""
    there = true >= 0
    hit = (true[:, :, None] == found[:, None, :]).any(axis=2)
    return float((hit & there).sum() / max(1, there.sum()))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise missing_extra("faiss (approximate neighbours; method='exact' needs none)", "faiss") from error
    return faiss
