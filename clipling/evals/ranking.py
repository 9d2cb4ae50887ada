"""Measures of a ranking with graded relevance: nDCG, reciprocal rank, coverage; ties count as their expectation.

Letters: Q queries, P pictures (or whatever is ranked), C classes. Scores closer than `TIE` are a tie, as in `retrieval.py`; the
expectation is over all orders of tied candidates, each as likely (McSherry & Najork, "Computing information retrieval performance
measures efficiently in the presence of tied scores", ECIR 2008). A score that is not finite is found last.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from clipling.evals.retrieval import TIE, Ranks

Gain = Literal["exponential", "linear"]


def gains(grades: np.ndarray, gain: Gain = "exponential") -> np.ndarray:
    """float64: what finding a picture of this grade is worth.

    `exponential`: 2^grade - 1 (Burges et al., "Learning to rank using gradient descent", ICML 2005); `linear`: the grade itself
    (Järvelin & Kekäläinen, TOIS 2002; trec_eval). With grades 0 and 1 both are the same.
    """
    grades = np.asarray(grades, dtype=np.float64)
    if gain not in ("exponential", "linear"):
        raise ValueError(f"gain is {gain!r}; expected exponential or linear")
    return np.exp2(grades) - 1.0 if gain == "exponential" else grades


def ndcg(scores: np.ndarray, worth: np.ndarray, k: int) -> np.ndarray:
    """float64 [Q]: nDCG@k of `scores [Q, P]` with gains `worth [Q, P]` and the discount 1 / log2(position + 1).

    nan for a query without anything worth finding.
    """
    scores, worth = _finite(scores), np.asarray(worth, dtype=np.float64)
    discount = 1.0 / np.log2(np.arange(min(k, scores.shape[1])) + 2.0)
    ideal = -np.sort(-worth, axis=1)[:, : len(discount)] @ discount
    found = np.zeros(len(scores))
    for q, row in enumerate(scores):
        for start, ids in _levels(row, len(discount)):
            found[q] += worth[q, ids].mean() * discount[start : start + len(ids)].sum()
    return np.divide(found, ideal, out=np.full(len(scores), np.nan), where=ideal > 0)


def coverage(scores: np.ndarray, relevant: np.ndarray, k: int) -> np.ndarray:
    """float64 [Q]: the share of a query's `relevant [Q, P]` (bool) that is expected among the k best by `scores [Q, P]`.

    What TREC calls recall at k. nan for a query without anything relevant.
    """
    scores, relevant = _finite(scores), np.asarray(relevant, dtype=bool)
    k = min(k, scores.shape[1])
    found, total = np.zeros(len(scores)), relevant.sum(1).astype(np.float64)
    for q, row in enumerate(scores):
        for start, ids in _levels(row, k):
            found[q] += relevant[q, ids].sum() * min(k - start, len(ids)) / len(ids)
    return np.divide(found, total, out=np.full(len(scores), np.nan), where=total > 0)


def first_relevant(scores: np.ndarray, relevant: np.ndarray) -> Ranks:
    """Where the first of the `relevant [Q, P]` (bool) stands by `scores [Q, P]`. Its `hits(k)` is recall@k.

    As `retrieval.ranks`, for right answers that differ from query to query.
    """
    scores, relevant = _finite(scores), np.asarray(relevant, dtype=bool)
    best = np.where(relevant, scores, -np.inf).max(axis=1, initial=-np.inf, keepdims=True)
    lost = np.isneginf(best)[:, 0]  # nothing relevant, or not finite: behind everything
    level = (scores >= best - TIE) & (scores <= best + TIE)
    wrong, right = (~relevant).sum(1), relevant.any(1).astype(np.int64)
    return Ranks(
        ahead=np.where(lost, wrong, ((scores > best + TIE) & ~relevant).sum(1)),
        tied=np.where(lost, 0, (level & ~relevant).sum(1)),
        own=np.where(lost, right, (level & relevant).sum(1)),
    )


def reciprocal_rank(ranks: Ranks) -> np.ndarray:
    """float64 [Q]: the expectation of 1 / position of the first right answer; 0 where there is none. Its mean is MRR."""
    found = np.where(ranks.own > 0, 1.0 / (ranks.ahead + 1.0), 0.0)
    for q in np.flatnonzero((ranks.own > 0) & (ranks.tied > 0)):
        ahead, tied, own = (int(x[q]) for x in (ranks.ahead, ranks.tied, ranks.own))
        before = np.arange(tied + 1)  # tied wrong ones that stand before the first right one
        missed = np.cumprod(np.concatenate([[1.0], (tied - before[:-1]) / (tied + own - before[:-1])]))
        found[q] = (missed * own / (tied + own - before) / (ahead + 1.0 + before)).sum()
    return found


def label_hits(scores: np.ndarray, labels: np.ndarray, tie: float = TIE) -> np.ndarray:
    """float64 [n]: the probability that the best of `scores [n, C]` is that of the label, classes tied with the best drawn at random.

    0 for a label below 0: a class that has no column.
    """
    scores, labels = _finite(scores), np.asarray(labels, dtype=np.int64)
    top = scores >= scores.max(axis=1, keepdims=True) - tie
    own = np.take_along_axis(top, np.maximum(labels, 0)[:, None], axis=1)[:, 0]
    return np.where(own & (labels >= 0), 1.0 / top.sum(1), 0.0)


def _levels(row: np.ndarray, k: int) -> Iterator[tuple[int, np.ndarray]]:
    """(positions before it, members) of each group of ties that reaches into the first k positions of `row [P]`, the best first.

    A group is what lies within `TIE` of its best member, so a long chain of close scores is not one tie.
    """
    # The group that holds the k-th best reaches no further down than TIE below it.
    kth = np.partition(row, len(row) - k)[len(row) - k]
    ids = np.flatnonzero(row >= kth - TIE)
    ids = ids[np.argsort(-row[ids], kind="stable")]
    falling, start = -row[ids], 0
    while start < k:
        end = int(np.searchsorted(falling, falling[start] + TIE, side="right"))
        yield start, ids[start:end]
        start = end


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    return np.where(np.isfinite(scores), scores, -np.inf)
