"""Linear probe: logistic regression on frozen image features (Radford et al. 2021, arXiv 2103.00020, section 3.2)."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from clipling.errors import UserError
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import LABELLED, Found, floats
from clipling.evals.suite.halves import check_source, choose, lacking, learning, model_hits
from clipling.evals.suite.subject import Subject

CS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)


@dataclass(frozen=True)
class LinearProbe:
    """How well one linear layer reads the classes off the image features: what they hold, whatever the text tower makes of it.

    scikit-learn's LogisticRegression (lbfgs, L2, in fp64) on unit features as they are: unlike CLIP's paper, nothing is scaled,
    so `Cs` reaches far up. C is chosen on a fifth of the pictures to learn from and the model fitted again on all of them.

    train: a labelled source to learn from (all of the dataset is tested on then); without it the dataset is halved by key hash.
    train_classes: the file of class names of `train`, if it needs one.
    Cs: inverse strengths of regularisation to choose from, rising; of equally good ones the strongest is taken.
    sample: at most so many pictures of the dataset, and of `train`: the time grows with pictures x classes. None: all.
    """

    train: str | None = None
    train_classes: str | None = None
    Cs: tuple[float, ...] = CS
    max_iter: int = 1000
    sample: int | None = 20_000

    task: ClassVar[str] = "linear_probe"
    takes: ClassVar[frozenset[str]] = frozenset({LABELLED})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = ("lp_acc1",)
    lower: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        check_source(self.task, self.train, self.train_classes, self.sample)
        if not self.Cs or any(not (math.isfinite(C) and C > 0) for C in self.Cs) or list(self.Cs) != sorted(set(self.Cs)):
            raise UserError(f"{self.task}: Cs are {list(self.Cs)}; expected one or more rising numbers above 0, such as [1, 10, 100]")
        if self.max_iter < 1:
            raise UserError(f"{self.task}: max_iter is {self.max_iter}; expected at least 1")

    def skipped(self, dataset: Dataset) -> str | None:
        return None if self.train is not None else lacking(dataset, self.sample)

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        on = learning(subject, dataset, self.train, self.train_classes, self.sample)
        short: dict[float, bool] = {}

        def fit(C: float, features: np.ndarray, labels: np.ndarray):
            model, converged = fitted(C, features, labels, self.max_iter)
            short[C] = short.get(C, False) or not converged
            return model

        C, tried = choose(self.Cs, fit, on) if len(self.Cs) > 1 else (self.Cs[0], [])
        hits = model_hits(fit(C, on.features, on.labels), on.test_features, on.test_labels)
        number = np.unique(on.test_labels, return_inverse=True)[1]
        recall = np.bincount(number, weights=hits) / np.bincount(number)
        return Found(
            metrics=floats({"lp_acc1": hits.mean(), "lp_mean_per_class_recall": recall.mean(), "C": C}),
            items={"lp_acc1": hits},
            details={
                "tried": [{"C": float(value), "acc1": acc1} for value, acc1 in tried],
                "train": len(on.labels),
                "test": len(on.test_labels),
            },
            notes=[*on.notes, *self._remarks(C, tried, short)],
        )

    def _remarks(self, C: float, tried: list, short: dict[float, bool]) -> list[str]:
        notes = []
        if short[C]:
            notes.append(f"The probe (C = {C:g}) did not converge in {self.max_iter} iterations: raise max_iter to be sure of it.")
        others = [f"{value:g}" for value, unfinished in short.items() if unfinished and value != C]
        if others:
            notes.append(f"In the choice of C, {', '.join(others)} did not converge in {self.max_iter} iterations.")
        if tried and self.Cs[-1] == C and max(acc1 for _, acc1 in tried[:-1]) < tried[-1][1]:
            notes.append(f"The largest C ({C:g}) is the best: a larger one may be better yet.")
        return notes


def fitted(C: float, features: np.ndarray, labels: np.ndarray, max_iter: int):
    """(scikit-learn's LogisticRegression on `features [n, d]`, `labels [n]`; whether it converged)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model = LogisticRegression(C=C, solver="lbfgs", max_iter=max_iter).fit(features, labels)
    unfinished = [w for w in caught if issubclass(w.category, ConvergenceWarning)]
    for other in caught:
        if other not in unfinished:
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return model, not unfinished
