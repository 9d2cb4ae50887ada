"""Retrieval in both directions, with a gallery and the worst failures."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np

from clipling.errors import UserError
from clipling.evals.chance import KS, remark
from clipling.evals.results import RETRIEVAL
from clipling.evals.retrieval import RetrievalRanks, metric_names, nearest, retrieval
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import PAIRS, Found
from clipling.evals.suite.subject import Subject

GALLERY, FAILURES, FAILURES_I2T = 8, 12, 8


@dataclass(frozen=True)
class ZeroShotRetrieval:
    """recall@k of captions by pictures (i2t) and pictures by captions (t2i), as CLIP_benchmark's.

    With several captions a picture, a picture's query is right when any of its captions is found. Pictures of one group are right
    answers to each other's captions.
    """

    ks: tuple[int, ...] = KS

    task: ClassVar[str] = RETRIEVAL
    takes: ClassVar[frozenset[str]] = frozenset({PAIRS})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = tuple(metric_names((1, 10)))
    lower: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise UserError(f"ks is {self.ks}; expected whole numbers from 1 on, such as [1, 5, 10]")

    def skipped(self, dataset: Dataset) -> str | None:
        return "it has no captions" if dataset.pairs.unpaired or not dataset.pairs.captions else None

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        pairs = dataset.pairs
        image, text = subject.images(dataset), subject.texts(pairs.captions)
        found = retrieval(image, text, pairs.offsets, list(pairs.groups) if any(pairs.groups) else None)
        items = {name: found.hits(name) for name in metric_names(self.ks)}
        said = remark(items, len(pairs), "test")
        return Found(
            metrics=found.recall(self.ks),
            items={name: hits for name, (hits, _) in items.items()},
            units={name: unit for name, (_, unit) in items.items()},
            details=_shown(image, text, found, dataset),
            notes=[said] if said else [],
        )


def _shown(image: np.ndarray, text: np.ndarray, found: RetrievalRanks, dataset: Dataset) -> dict[str, Any]:
    captions = dataset.pairs.captions
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.pairs.offsets))
    drawn = sorted(range(len(captions)), key=lambda t: blake2b(f"{t} {captions[t]}".encode("utf-8", "surrogatepass")).digest())[:GALLERY]
    rank_t, rank_i = found.t2i.expected(), found.i2t.expected()
    worst_t = np.argsort(-np.nan_to_num(rank_t, nan=-1), kind="stable")[:FAILURES]
    worst_i = np.argsort(-np.nan_to_num(rank_i, nan=-1), kind="stable")[:FAILURES_I2T]
    return {
        "gallery": _by_text(drawn, text, image, owner, captions, rank_t, 5),
        "failures": _by_text([int(t) for t in worst_t if rank_t[t] > 1], text, image, owner, captions, rank_t, 3),
        "failures_i2t": _by_image([int(i) for i in worst_i if rank_i[i] > 1], image, text, captions, rank_i),
    }


def _by_text(
    rows: list[int], text: np.ndarray, image: np.ndarray, owner: np.ndarray, captions: list[str], rank: np.ndarray, k: int
) -> list[dict[str, Any]]:
    if not rows:
        return []
    ids, scores = nearest(text[rows], image, k)
    return [
        {
            "caption": captions[t],
            "row": int(owner[t]),
            "rank": float(rank[t]),
            "found": [int(i) for i in ids[n]],
            "scores": [float(s) for s in scores[n]],
        }
        for n, t in enumerate(rows)
    ]


def _by_image(rows: list[int], image: np.ndarray, text: np.ndarray, captions: list[str], rank: np.ndarray) -> list[dict[str, Any]]:
    if not rows:
        return []
    ids, _ = nearest(image[rows], text, 3)
    return [{"row": i, "rank": float(rank[i]), "captions": [captions[t] for t in ids[n]]} for n, i in enumerate(rows)]
