"""Retrieval recall in both directions, with several captions an image, groups of like images, and honest ties.

The numbers mean what CLIP_benchmark's `text_retrieval_recall@k` (here `i2t_recall@k`) and `image_retrieval_recall@k`
(`t2i_recall@k`) mean: the share of queries with at least one right answer among their k nearest. Letters: P images,
T captions, Q queries, C candidates, d features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clipling.evals.chance import KS
from clipling.evals.intervals import interval

TIE = 1e-6
"""Cosines closer than this are a tie: fp32 encoders give equal pictures features that differ by about 1e-7."""

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class Ranks:
    """Where the first right answer of every query stands, kept so that ties can be resolved exactly.

    The best right answer of query j has `ahead[j]` wrong candidates before it and is tied with `tied[j]` wrong ones;
    `own[j]` right answers share that score. `own` is 0 for a query that has no right answer at all.
    """

    ahead: np.ndarray  # [Q] int64
    tied: np.ndarray  # [Q] int64
    own: np.ndarray  # [Q] int64

    def hits(self, k: int) -> np.ndarray:
        """float64 [Q]: the probability that a right answer is among the k nearest when ties are broken at random.

        It is 0 or 1 without ties. A model that gives every input the same feature scores about k/P, not 1.
        """
        room = np.clip(k - self.ahead, 0, None)
        missed = np.ones(len(self.ahead))
        # Drawing `room` of the tied candidates without a right one: the product of (tied - i) / (tied + own - i).
        for i in range(int(room.max(initial=0))):
            factor = np.clip(self.tied - i, 0, None) / np.clip(self.tied + self.own - i, 1, None)
            missed = np.where(i < room, missed * factor, missed)
        return np.where(self.own > 0, 1.0 - missed, 0.0)

    def expected(self) -> np.ndarray:
        """float64 [Q]: the mean position of the first right answer, counted from 1 (nan where there is none)."""
        position = self.ahead + (self.tied + self.own + 1) / (self.own + 1)
        return np.where(self.own > 0, position, np.nan)


@dataclass(frozen=True)
class RetrievalRanks:
    """Ranks of both directions over one set of pairs, and the unit that a bootstrap resamples."""

    i2t: Ranks  # queries: the P images
    t2i: Ranks  # queries: the T captions
    image_unit: np.ndarray  # [P] int64: images of one group share a number
    text_unit: np.ndarray  # [T] int64

    def hits(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """(hits [q], unit [q]) of the queries that have an answer, for `i2t_recall@k` or `t2i_recall@k`."""
        direction, _, k = metric.partition("_recall@")
        if direction not in ("i2t", "t2i") or not k.isdigit():
            raise ValueError(f"{metric!r} is not a recall; expected i2t_recall@k or t2i_recall@k")
        ranks, unit = (self.i2t, self.image_unit) if direction == "i2t" else (self.t2i, self.text_unit)
        answered = ranks.own > 0
        return ranks.hits(int(k))[answered], unit[answered]

    def recall(self, ks: Sequence[int] = KS) -> dict[str, float]:
        """`i2t_recall@k` and `t2i_recall@k` as fractions."""
        return {name: float(self.hits(name)[0].mean()) for name in metric_names(ks)}

    def intervals(self, ks: Sequence[int] = KS) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals of the recalls over pairs (captions of a pair, pairs of a group drawn together)."""
        return {name: interval(*self.hits(name)) for name in metric_names(ks)}


def metric_names(ks: Sequence[int] = KS) -> list[str]:
    """`i2t_recall@k` of every k, then `t2i_recall@k`."""
    return [f"{direction}_recall@{k}" for direction in ("i2t", "t2i") for k in ks]


def recall(
    image: np.ndarray | torch.Tensor,
    text: np.ndarray | torch.Tensor,
    offsets: np.ndarray | Sequence[int],
    ks: Sequence[int] = KS,
    positives: Sequence[str] | None = None,
) -> dict[str, float]:
    """Recall of `image [P, d]` against `text [T, d]`, unit rows; caption rows of image i are offsets[i] ... offsets[i+1].

    `positives`: a group for each image (`""` for none); captions of every image of the same group are right answers.
    Ties count as their expectation under random order. Images without a right caption are candidates but no queries.
    """
    return retrieval(image, text, offsets, positives).recall(ks)


def retrieval(
    image: np.ndarray | torch.Tensor,
    text: np.ndarray | torch.Tensor,
    offsets: np.ndarray | Sequence[int],
    positives: Sequence[str] | None = None,
) -> RetrievalRanks:
    """The ranks behind `recall`, for galleries and intervals. Arguments as there."""
    offsets = np.asarray(offsets, dtype=np.int64)
    pairs = len(image)
    if len(offsets) != pairs + 1 or offsets[0] != 0 or offsets[-1] != len(text) or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets of {pairs} images and {len(text)} captions must rise from 0 to {len(text)}")
    if len(text) == 0:
        raise ValueError("recall needs at least one caption")
    image_unit = units(positives, pairs)
    text_unit = np.repeat(image_unit, np.diff(offsets))
    return RetrievalRanks(
        i2t=ranks(image, text, image_unit, text_unit),
        t2i=ranks(text, image, text_unit, image_unit),
        image_unit=image_unit,
        text_unit=text_unit,
    )


def units(groups: Sequence[str] | None, pairs: int) -> np.ndarray:
    """int64 [P]: one number for all images of a non-empty group, a number of its own for every other image."""
    if groups is None:
        return np.arange(pairs, dtype=np.int64)
    if len(groups) != pairs:
        raise ValueError(f"{len(groups)} groups for {pairs} images")
    first: dict[str, int] = {}
    return np.array([first.setdefault(g, i) if g else i for i, g in enumerate(groups)], dtype=np.int64).reshape(pairs)


def ranks(
    queries: np.ndarray | torch.Tensor,
    candidates: np.ndarray | torch.Tensor,
    query_class: np.ndarray,
    candidate_class: np.ndarray,
    block: int | None = None,
) -> Ranks:
    """Ranks of `queries [Q, d]` over `candidates [C, d]`; a candidate of the same class is a right answer.

    Scores are fp64 cosines, a block of queries at a time (64 MB, or `block` rows), so memory does not grow with Q x C.
    A query or candidate with a feature that is not finite finds nothing and is found last.
    """
    rows, columns = _rows(queries), _rows(candidates)
    right_class = torch.from_numpy(np.asarray(candidate_class, dtype=np.int64))
    wanted = torch.from_numpy(np.asarray(query_class, dtype=np.int64))
    block = block or max(1, _BLOCK_BYTES // (8 * max(1, len(columns))))
    counts: list[torch.Tensor] = [torch.empty((3, 0), dtype=torch.int64)]
    for start in range(0, len(rows), block):
        scores = rows[start : start + block] @ columns.T
        scores.masked_fill_(~torch.isfinite(scores), -torch.inf)
        right = wanted[start : start + block, None] == right_class[None, :]
        counts.append(_count(scores, right))
    ahead, tied, own = torch.cat(counts, dim=1).numpy()
    return Ranks(ahead, tied, own)


def _count(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """[3, b]: wrong candidates ahead of the best right one, wrong ones tied with it, right ones tied with it."""
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    above = ((scores > best + TIE) & ~right).sum(1)
    level = (scores >= best - TIE) & (scores <= best + TIE)
    tied, own = (level & ~right).sum(1), (level & right).sum(1)
    lost = torch.isneginf(best).squeeze(1)  # not finite, or no right candidate at all
    wrong, any_right = (~right).sum(1), right.any(1).long()
    return torch.stack([torch.where(lost, wrong, above), tied.masked_fill(lost, 0), torch.where(lost, any_right, own)])


def nearest(queries: np.ndarray | torch.Tensor, candidates: np.ndarray | torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids [Q, k] int64, cosines [Q, k]) of the k nearest candidates, ties in row order; for the few rows of a gallery."""
    scores = (_rows(queries) @ _rows(candidates).T).numpy()
    scores = np.where(np.isfinite(scores), scores, -np.inf)
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(scores, ids, axis=1)


def _rows(features: np.ndarray | torch.Tensor) -> torch.Tensor:
    """fp64 rows on the CPU."""
    if isinstance(features, torch.Tensor):
        return features.detach().cpu().to(torch.float64)
    return torch.from_numpy(np.array(features, dtype=np.float64))  # a copy: features in a file are not writable
