"""Nearest neighbours above the size at which comparing all with all is sensible: an inverted file of faiss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipling.errors import missing_extra
from clipling.guides.candidates import EXTRA
from clipling.guides.search import Excluded, check_unit, rank_pairs

PROBE_SHARE = 32  # one cell in this many is looked through, at least LEAST_PROBES
LEAST_PROBES = 16
LEAST_ROWS = 40  # rows a cell: k-means wants no fewer
TRAIN_ROWS = 64  # rows a cell from which the cells are learned
MOST_EXCLUDED = 1000


class FaissSearch:
    """Cells around k-means centres; a query is compared with the rows of the nearest cells only (Sivic and Zisserman 2003).

    What it finds is ranked as by `ExactSearch`, so only the choice of candidates is approximate. Arguments as there.
    """

    def __init__(self, columns: np.ndarray, owner: np.ndarray, links: Sequence[Sequence[int]]) -> None:
        try:
            import faiss
        except ImportError as error:
            raise missing_extra("faiss (approximate neighbours; method='exact' needs none)", "faiss") from error
        check_unit(columns)
        self.columns = columns
        self.owner = np.asarray(owner, dtype=np.int64)
        self.excluded = Excluded.of(self.owner, links)
        self.spare = min(self.excluded.most, MOST_EXCLUDED)
        self.per_pair = int(np.unique(self.owner, return_counts=True)[1].max(initial=1))
        cells = max(1, min(int(4 * np.sqrt(len(columns))), len(columns) // LEAST_ROWS))
        self.index = faiss.IndexIVFFlat(faiss.IndexFlatIP(columns.shape[1]), columns.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
        self.index.cp.max_points_per_centroid = TRAIN_ROWS
        sample = np.random.default_rng(0).permutation(len(columns))[: cells * TRAIN_ROWS]
        self.index.train(np.ascontiguousarray(columns[np.sort(sample)], dtype=np.float32))
        for start in range(0, len(columns), 65_536):
            self.index.add(np.ascontiguousarray(columns[start : start + 65_536], dtype=np.float32))
        self.index.nprobe = min(cells, max(LEAST_PROBES, cells // PROBE_SHARE))
        self.method = f"faiss {faiss.__version__}: {cells} cells, {self.index.nprobe} probed"

    def top(self, queries: np.ndarray, pairs: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Search.top`."""
        ids = np.full((len(queries), count), -1, dtype=np.int64)
        sims = np.full((len(queries), count), -np.inf)
        most = min((count - 1) * self.per_pair + 1 + EXTRA + self.spare, len(self.columns))
        _, found = self.index.search(np.ascontiguousarray(queries, dtype=np.float32), most)
        barred = np.unique(np.stack(self.excluded.columns(pairs)), axis=1)
        rows, slots = np.nonzero(found >= 0)
        columns = found[rows, slots]
        width = len(self.columns)
        allowed = ~np.isin(rows * width + columns, barred[0] * width + barred[1])
        rank_pairs(queries, rows[allowed], self.columns, columns[allowed], self.owner, ids, sims)
        return ids, sims


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """Share of the true neighbours [n, k] (-1 = none) that were found [n, k]."""
    there = true >= 0
    hit = (true[:, :, None] == found[:, None, :]).any(axis=2)
    return float((hit & there).sum() / max(1, there.sum()))
