"""Zero-shot classification by the dataset's own class names and templates, and where it goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import softmax

from clipling.evals.results import CLASSIFICATION
from clipling.evals.retrieval import ranks
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import LABELLED, Found
from clipling.evals.suite.subject import Subject
from clipling.evals.zeroshot import zero_shot

CONFUSIONS, FAILURES, GUESSES = 15, 24, 3


@dataclass(frozen=True)
class ZeroShotClassification:
    """acc1, acc5 and mean_per_class_recall, as CLIP_benchmark's (ties count as their expectation; see evals/zeroshot.py)."""

    task: ClassVar[str] = CLASSIFICATION
    takes: ClassVar[frozenset[str]] = frozenset({LABELLED})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = ("acc1", "mean_per_class_recall")
    lower: ClassVar[frozenset[str]] = frozenset()

    def skipped(self, dataset: Dataset) -> str | None:
        return None

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        image, text = subject.images(dataset), subject.classes(dataset)
        labels = np.asarray(dataset.labelled.labels)
        found = ranks(image, text, labels, np.arange(len(text)))
        items = {"acc1": found.hits(1)} | ({"acc5": found.hits(5)} if len(text) > 5 else {})
        details = {
            "classes": per_class(found.hits(1), labels, dataset.labelled.classnames),
            **_mistakes(image, text, labels, dataset, subject.scale),
        }
        return Found(metrics=zero_shot(image, labels, text), items=items, details=details)


def per_class(hits: np.ndarray, labels: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    """Accuracy and number of pictures of every class that has any."""
    count = np.bincount(labels, minlength=len(names))
    right = np.bincount(labels, weights=hits, minlength=len(names))
    return [{"name": names[c], "accuracy": float(right[c] / count[c]), "count": int(count[c])} for c in range(len(names)) if count[c]]


def _mistakes(image: np.ndarray, text: np.ndarray, labels: np.ndarray, dataset: Dataset, scale: float) -> dict[str, Any]:
    """The most frequent confusions and the most confident mistakes. Pictures are gone through in blocks."""
    names, block = dataset.labelled.classnames, 4096
    pairs = np.zeros((len(names), len(names)), dtype=np.int64) if len(names) <= 4096 else None
    worst: list[tuple[float, int, list[list[Any]]]] = []
    for start in range(0, len(image), block):
        p = softmax(scale * (image[start : start + block].astype(np.float64) @ text.T.astype(np.float64)), axis=1)
        order = np.argsort(-p, axis=1, kind="stable")[:, :GUESSES]
        truth = labels[start : start + block]
        if pairs is not None:
            np.add.at(pairs, (truth, order[:, 0]), 1)
        wrong = np.flatnonzero(order[:, 0] != truth)
        top = wrong[np.argsort(-p[wrong, order[wrong, 0]], kind="stable")[:FAILURES]]
        worst += [(float(p[i, order[i, 0]]), start + int(i), [[names[c], float(p[i, c])] for c in order[i]]) for i in top]
    worst = sorted(worst, key=lambda w: (-w[0], w[1]))[:FAILURES]
    failures = [{"row": i, "key": dataset.source.keys[i], "true": names[labels[i]], "guesses": guesses} for _, i, guesses in worst]
    return {"failures": failures, "confusions": [] if pairs is None else _confusions(pairs, names)}


def _confusions(pairs: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    """Which class is most often taken for which other."""
    total = pairs.sum(1)
    wrong = pairs.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    cells = [divmod(int(flat), len(names)) for flat in order]
    return [
        {"true": names[t], "predicted": names[g], "count": int(wrong[t, g]), "share": float(wrong[t, g] / total[t])}
        for t, g in cells
        if wrong[t, g]
    ]
