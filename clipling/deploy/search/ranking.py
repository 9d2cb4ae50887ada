"""The nearest pictures to a query: exactly, or above a stated number by usearch's HNSW graph."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from clipling.store import atomic_produce

# Up to here every picture is compared (one product of 100,000 x 256 takes some 10 ms); above, the graph is asked.
EXACT_UP_TO = 100_000
GRAPH = "pictures.usearch"
# Malkov and Yashunin 2018: links a node; candidates looked at while building and searching.
_LINKS, _WHILE_ADDING, _WHILE_SEARCHING = 16, 128, 256
_MOST_DEAD = 0.2  # share of removed nodes above which the graph is built anew
_LAST_BITS = 1e-5
_SAMPLE = 200  # pictures by which the graph's recall is measured


class Ranking:
    """The pictures of an index, ready to be ranked. Unchanging, so it may be asked from several threads."""

    def __init__(self, ids: np.ndarray, embeddings: np.ndarray, graph: Any = None) -> None:
        """ids: int64 [n] ascending. embeddings: float32 [n, d] unit rows. graph: a usearch index of them, None to compare all."""
        self.ids = ids
        self.embeddings = embeddings
        self._graph = graph
        # usearch refuses more searches at a time than it has made rooms for.
        self._one = threading.Lock()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def exact(self) -> bool:
        return self._graph is None

    def search(self, query: np.ndarray, k: int, without: Iterable[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """(numbers int64 [m], cosines float32 [m]), m <= k, best first, equal ones by number; `query` [d] unit."""
        rows = self._rows_of(without)
        if self._graph is None:
            candidates = np.arange(len(self.ids))
        else:
            wanted = min(k + len(rows), len(self.ids))
            with self._one:
                found = self._graph.search(query, wanted).keys
            candidates = np.searchsorted(self.ids, np.sort(np.asarray(found).astype(np.int64)))
        scores = (self.embeddings if self._graph is None else self.embeddings[candidates]) @ query
        if len(rows):
            kept = ~np.isin(candidates, rows)
            candidates, scores = candidates[kept], scores[kept]
        near = candidates[near_top(scores, k)]
        # A product's last bits depend on the place in the matrix: equal pictures are equal only when summed one way.
        exact = (self.embeddings[near].astype(np.float64) * query).sum(axis=1)
        best = np.argsort(-exact, kind="stable")[:k]
        return self.ids[near[best]], exact[best].astype(np.float32)

    def embedding(self, number: int) -> np.ndarray | None:
        """[d], None where there is no such picture."""
        row = self._rows_of([number])
        return self.embeddings[row[0]] if len(row) else None

    def _rows_of(self, numbers: Iterable[int]) -> np.ndarray:
        # Numbers beyond 64 bits cannot be a picture's, and numpy would refuse them.
        wanted = np.asarray([number for number in numbers if 0 < number < 2**62], dtype=np.int64)
        rows = np.searchsorted(self.ids, wanted)
        return rows[(rows < len(self.ids)) & (self.ids[np.minimum(rows, len(self.ids) - 1)] == wanted)] if len(self.ids) else rows[:0]


def near_top(scores: np.ndarray, k: int) -> np.ndarray:
    """Places, ascending, of all that may be among the `k` largest, whatever the last bits of float32 scores say."""
    k = min(k, len(scores))
    if k < 1:
        return np.zeros(0, np.int64)
    bound = np.partition(scores, len(scores) - k)[len(scores) - k]
    return np.flatnonzero(scores >= bound - _LAST_BITS)


def open_ranking(folder: Path, ids: np.ndarray, embeddings: np.ndarray, exact_up_to: int = EXACT_UP_TO) -> Ranking:
    """With the graph of the index folder, brought up to date in memory where a kill left it behind."""
    if len(ids) <= exact_up_to:
        return Ranking(ids, embeddings)
    graph, _ = _graph(folder / GRAPH, ids, embeddings)
    return Ranking(ids, embeddings, graph)


def write_graph(folder: Path, ids: np.ndarray, embeddings: np.ndarray, exact_up_to: int = EXACT_UP_TO) -> dict[str, Any]:
    """Makes the graph's file fit the pictures, or removes it where there are few; says how pictures are ranked.

    recall@10: of the graph against comparing all, over pictures of the index as queries.
    """
    path = folder / GRAPH
    if len(ids) <= exact_up_to:
        path.unlink(missing_ok=True)
        return {"ranking": "exact"}
    graph, changed = _graph(path, ids, embeddings)
    if changed:
        atomic_produce(path, lambda temporary: graph.save(str(temporary)))
    sample = np.random.default_rng(0).choice(len(ids), min(_SAMPLE, len(ids)), replace=False)
    plain, fast = Ranking(ids, embeddings), Ranking(ids, embeddings, graph)
    hits = [len(np.intersect1d(plain.search(embeddings[i], 10)[0], fast.search(embeddings[i], 10)[0])) for i in sample]
    return {"ranking": "hnsw", "recall@10": round(float(np.mean(hits)) / min(10, len(ids)), 4)}


def _graph(path: Path, ids: np.ndarray, embeddings: np.ndarray) -> tuple[Any, bool]:
    """(usearch index of exactly these pictures, whether it differs from the file). Numbers are never given twice, so the
    difference of the numbers is the difference of the pictures."""
    graph = _stored(path, embeddings.shape[1])
    there = np.sort(np.asarray(graph.keys).astype(np.int64)) if graph is not None and len(graph) else np.zeros(0, np.int64)
    gone = np.setdiff1d(there, ids)
    if graph is None or len(gone) > _MOST_DEAD * max(len(there), 1):
        graph, there, gone = _new(embeddings.shape[1]), there[:0], gone[:0]
    new = np.setdiff1d(ids, there)
    if len(gone):
        graph.remove(gone.astype(np.uint64))
    if len(new):
        graph.add(new.astype(np.uint64), embeddings[np.searchsorted(ids, new)])
    return graph, bool(len(gone) or len(new))


def _new(dim: int) -> Any:
    from usearch.index import Index

    return Index(ndim=dim, metric="cos", dtype="f32", connectivity=_LINKS, expansion_add=_WHILE_ADDING, expansion_search=_WHILE_SEARCHING)


def _stored(path: Path, dim: int) -> Any:
    """The graph of the file; None where there is none, or it is not one: it is made again."""
    if not path.is_file():
        return None
    graph = _new(dim)
    try:
        graph.load(str(path))
    except Exception:  # usearch raises RuntimeError and others for files of another kind or version
        return None
    return graph if graph.ndim == dim else None
