"""k nearest neighbours on frozen image features: what can be read off them without learning anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from clipling.errors import UserError
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import LABELLED, Found, floats
from clipling.evals.suite.halves import Learning, check_source, choose, held_out, lacking, learning, model_hits
from clipling.evals.suite.subject import Subject

TEMPERATURE = 0.07
_MEGABYTES = 64  # of distances at once


@dataclass(frozen=True)
class KNN:
    """Majority vote of the k nearest pictures by cosine; ties of the vote count as their expectation.

    weights: `similarity` weighs a vote by exp(cosine / temperature) (Wu et al. 2018, arXiv 1805.01978, section 3.4); `uniform`
        counts heads.
    temperature: of the former; 0.07 unless given.
    ks: to choose from on a fifth of the pictures to learn from, rising; of equally good ones the smallest is taken, and those
        larger than what is left to learn from are passed over.
    train, train_classes, sample: as for the linear probe.
    """

    train: str | None = None
    train_classes: str | None = None
    ks: tuple[int, ...] = (1, 3, 5, 10, 20, 50, 100, 200)
    weights: Literal["similarity", "uniform"] = "similarity"
    temperature: float | None = None
    sample: int | None = 20_000

    task: ClassVar[str] = "knn"
    takes: ClassVar[frozenset[str]] = frozenset({LABELLED})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = ("knn_acc1",)
    lower: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_source(self.task, self.train, self.train_classes, self.sample)
        if not self.ks or any(k < 1 for k in self.ks) or list(self.ks) != sorted(set(self.ks)):
            raise UserError(f"{self.task}: ks are {list(self.ks)}; expected one or more rising whole numbers from 1, such as [1, 5, 20]")
        if self.temperature is not None and self.weights == "uniform":
            raise UserError(f"{self.task}: a uniform vote has no temperature. Leave it out, or set weights: similarity.")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise UserError(f"{self.task}: temperature is {self.temperature}; expected a number above 0, such as {TEMPERATURE}")

    def skipped(self, dataset: Dataset) -> str | None:
        return None if self.train is not None else lacking(dataset, self.sample)

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        from sklearn import config_context

        on = learning(subject, dataset, self.train, self.train_classes, self.sample)
        with config_context(working_memory=_MEGABYTES):
            k, tried = self._chosen(on)
            hits = model_hits(self.fitted(k, on.features, on.labels), on.test_features, on.test_labels)
        return Found(
            metrics=floats({"knn_acc1": hits.mean(), "k": k}),
            items={"knn_acc1": hits},
            details={
                "tried": [{"k": int(value), "acc1": acc1} for value, acc1 in tried],
                "train": len(on.labels),
                "test": len(on.test_labels),
            },
            notes=on.notes,
        )

    def fitted(self, k: int, features: np.ndarray, labels: np.ndarray):
        """scikit-learn's KNeighborsClassifier on `features [n, d]`, `labels [n]`."""
        from sklearn.neighbors import KNeighborsClassifier

        weights = "uniform" if self.weights == "uniform" else similarity_weights(self.temperature or TEMPERATURE)
        return KNeighborsClassifier(k, weights=weights, algorithm="brute", metric="cosine").fit(features, labels)

    def _chosen(self, on: Learning) -> tuple[int, list[tuple[int, float]]]:
        most = max(1, int((~held_out(on)).sum()))
        ks = [k for k in self.ks if k <= most]
        if not ks:
            raise UserError(f"{self.task}: every one of ks {list(self.ks)} is above {most}, the pictures to learn from. Give smaller ones.")
        if len(ks) < len(self.ks):
            on.notes.append(f"k above {most} is passed over: there are no more pictures to learn from.")
        return choose(ks, self.fitted, on) if len(ks) > 1 else (ks[0], [])


def similarity_weights(temperature: float) -> Callable[[np.ndarray], np.ndarray]:
    """Weights [n, k] of votes by cosine distances [n, k], up to a factor for each row that changes no vote."""

    def weigh(distances: np.ndarray) -> np.ndarray:
        # Relative to the nearest: the exponential of a small temperature neither overflows nor vanishes.
        return np.exp((distances.min(axis=1, keepdims=True) - distances) / temperature)

    return weigh
