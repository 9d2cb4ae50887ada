"""Hubs: rows that are a neighbour of very many others (Radovanovic, Nanopoulos and Ivanovic 2010), reported and capped."""

from __future__ import annotations

from typing import Any

import numpy as np


def in_degrees(ids: np.ndarray, pairs: int) -> np.ndarray:
    """How often each of `pairs` pairs occurs in ids [..., k] (-1 = none), int64 [pairs]."""
    return np.bincount(ids[ids >= 0].ravel(), minlength=pairs)


def hubness(ids: np.ndarray, rows: np.ndarray, pairs: int) -> dict[str, Any]:
    """Of a table ids [Q, k] whose targets are the training pairs `rows`: how unevenly neighbours are spread.

    largest: the largest in-degree, and `hub` the pair that has it; first: the largest among first neighbours alone;
    mean: the mean in-degree; never: the share of `rows` that are nobody's neighbour; short: queries with fewer than k.
    """
    degree = in_degrees(ids, pairs)
    first = in_degrees(ids[:, :1], pairs)
    queries = ids[(ids >= 0).any(axis=1)]
    return {
        "largest": int(degree.max(initial=0)),
        "hub": int(degree.argmax()) if len(degree) else -1,
        "first": int(first.max(initial=0)),
        "mean": float(degree[rows].mean()) if len(rows) else 0.0,
        "never": float((degree[rows] == 0).mean()) if len(rows) else 0.0,
        "short": int((queries < 0).any(axis=1).sum()),
    }


def capped(ids: np.ndarray, sims: np.ndarray, k: int, cap: int) -> tuple[np.ndarray, np.ndarray]:
    """At most k neighbours for each query and at most `cap` queries for each neighbour. [Q, m] -> [Q, k], both.

    ids, sims [Q, m]: each query's candidates, nearest first (-1 = none). Deferred acceptance (Gale and Shapley 1962): every query
    proposes to its k nearest candidates, every candidate keeps the `cap` nearest of its proposers (the smaller query number where
    they are equally near) and rejects the others for good, and those propose to their next candidates. The result is the one
    stable assignment, whatever the order of the work. Queries whose candidates run out keep fewer than k.
    """
    alive = ids >= 0
    while True:
        proposing = alive & (np.cumsum(alive, axis=1) <= k)
        query, slot = np.nonzero(proposing)
        target, near = ids[query, slot], sims[query, slot]
        best = np.lexsort((query, -near, target))
        place = np.empty(len(best), dtype=np.int64)
        sorted_target = target[best]
        place[best] = np.arange(len(best)) - np.searchsorted(sorted_target, sorted_target, side="left")
        rejected = place >= cap
        if not rejected.any():
            return _packed(ids, sims, proposing, k)
        alive[query[rejected], slot[rejected]] = False


def _packed(ids: np.ndarray, sims: np.ndarray, kept: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The kept candidates of every query, nearest first, moved to the front."""
    query, slot = np.nonzero(kept)
    place = np.cumsum(kept, axis=1)[query, slot] - 1
    packed_ids = np.full((len(ids), k), -1, dtype=np.int64)
    packed_sims = np.full((len(ids), k), -np.inf)
    packed_ids[query, place] = ids[query, slot]
    packed_sims[query, place] = sims[query, slot]
    return packed_ids, packed_sims
