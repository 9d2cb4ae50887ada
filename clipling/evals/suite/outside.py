"""Out-of-distribution detection: whether confidence tells pictures of this dataset from pictures of others.

The protocol and the first score are of Hendrycks & Gimpel (arXiv 1610.02136). Letters: n pictures, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score, roc_curve

from clipling.errors import UserError
from clipling.evals.retrieval import TIE
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import LABELLED, Found, floats
from clipling.evals.suite.subject import Subject

SUFFIXES = {"probability": "", "logit": "_logit", "mcm": "_mcm"}
HISTOGRAM_BINS = 20


def log_odds(logits: np.ndarray) -> np.ndarray:
    """fp64 [n]: ln(p / (1 - p)) of the largest softmax probability p of `logits [n, C]`, C >= 2.

    It orders pictures as p does, and still does where p is rounded to 1.
    """
    first = logits.argmax(1)[:, None]
    top = np.take_along_axis(logits, first, axis=1)
    rest = logits - top
    np.put_along_axis(rest, first, -np.inf, axis=1)
    return -logsumexp(rest, axis=1)


def inside_scores(images: np.ndarray, classes: np.ndarray, scale: float) -> dict[str, np.ndarray]:
    """What says that a picture is inside, by name, each fp64 [n], of unit rows `images [n, d]` and `classes [C, d]`.

    probability: the largest softmax probability at the model's scale. logit: the largest cosine. mcm: the largest softmax probability of
    the cosines themselves, temperature 1 (Ming et al., arXiv 2211.13445). Probabilities are given as log odds.
    """
    cosines = np.asarray(images, dtype=np.float64) @ np.asarray(classes, dtype=np.float64).T
    # Products of other shapes differ in the last bits: without rounding, a constant model would separate the sets perfectly.
    cosines = np.round(cosines / TIE) * TIE
    return {"probability": log_odds(scale * cosines), "logit": cosines.max(1), "mcm": log_odds(cosines)}


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """The share of (inside, outside) couples in which the inside one scores higher, ties half."""
    return float(roc_auc_score(*_together(inside, outside)))


def fpr_at(inside: np.ndarray, outside: np.ndarray, rate: float = 0.95) -> float:
    """The share of `outside` that passes the highest threshold which at least `rate` of `inside` pass.

    What scores the threshold itself passes, so a constant score gives 1.
    """
    false, true, _ = roc_curve(*_together(inside, outside), drop_intermediate=False)
    return float(false[np.argmax(true >= rate)])


def _together(inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(inside) or not len(outside):
        raise ValueError(f"{len(inside)} pictures inside and {len(outside)} outside; expected at least one of each")
    return np.repeat([1, 0], [len(inside), len(outside)]), np.concatenate([inside, outside])


@dataclass(frozen=True)
class Outside:
    """AUROC and FPR@95 of this dataset's pictures (inside, positive) against those of every outside set.

    Three scores: the largest probability (no suffix), the largest cosine (`_logit`), and MCM (`_mcm`); see `inside_scores`. Pictures of an
    outside set whose bytes are also in this dataset are left out. `auroc` does not depend on how many pictures either side has.

    Settings:
        sample: at most so many pictures of every set, chosen by key; None for all.
    """

    task: ClassVar[str] = "outside"
    takes: ClassVar[frozenset[str]] = frozenset({LABELLED})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = ("auroc", "fpr95", "auroc_logit", "fpr95_logit")
    lower: ClassVar[frozenset[str]] = frozenset({"fpr95", "fpr95_logit", "fpr95_mcm"})

    sample: int | None = 2000

    def __post_init__(self) -> None:
        if self.sample is not None and self.sample < 1:
            raise UserError(f"outside: sample is {self.sample}; expected a whole number from 1, or null for all pictures")

    def skipped(self, dataset: Dataset) -> str | None:
        if not dataset.outside:
            return "it names no outside sets"
        return "it has one class, so every probability is 1" if len(dataset.labelled.classnames) < 2 else None

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        names = [other.name for other in dataset.outside]
        if len(set(names)) < len(names):
            raise UserError(
                f"two outside sets of {dataset.name} have one name ({', '.join(names)}); rename the folder or file of one of them"
            )
        classes, rows = subject.classes(dataset), dataset.sample(self.sample)
        inside = inside_scores(subject.images(dataset, rows), classes, subject.scale)
        notes = [f"Inside are {len(rows)} pictures of {dataset.name}, the positives."]
        metrics: dict[str, float] = {}
        sets = []
        for other in dataset.outside:
            chosen, left_out = self._rows(dataset, other)
            outside = inside_scores(subject.images(other, chosen), classes, subject.scale)
            found = measured(inside, outside)
            metrics |= {f"{name}@{other.name}": value for name, value in found.items()}
            histogram = _histogram(inside["probability"], outside["probability"])
            sets.append({"name": other.name, "pictures": len(chosen), **found, "histogram": histogram})
            repeated = f"; {left_out} more are also inside and were left out" if left_out else ""
            notes.append(f"Outside are {len(chosen)} pictures of {other.name}{repeated}.")
        means = {name: np.mean([one[name] for one in sets]) for name in found}
        return Found(metrics=floats(means | metrics), details={"sets": sets}, notes=notes)

    def _rows(self, dataset: Dataset, other: Dataset) -> tuple[np.ndarray, int]:
        """(rows of `other` to measure on, how many of its sample are in `dataset` as well)."""
        rows, own = other.sample(self.sample), set(dataset.hashes)
        fresh = np.array([other.hashes[i] not in own for i in rows], dtype=bool)
        if not fresh.any():
            raise UserError(
                f"all {len(rows)} pictures of the outside set {other.name} are also in {dataset.name}. "
                "Give a set of other pictures, or leave it out."
            )
        return rows[fresh], int((~fresh).sum())


def measured(inside: dict[str, np.ndarray], outside: dict[str, np.ndarray]) -> dict[str, float]:
    """`auroc` and `fpr95` of every score of `inside_scores`, with the suffix of the score."""
    found = {}
    for score, suffix in SUFFIXES.items():
        found[f"auroc{suffix}"] = auroc(inside[score], outside[score])
        found[f"fpr95{suffix}"] = fpr_at(inside[score], outside[score])
    return found


def _histogram(inside: np.ndarray, outside: np.ndarray) -> dict[str, Any]:
    """The share of each side's pictures by the largest probability, from log odds; each side adds up to 1."""
    edges = np.linspace(0.0, 1.0, HISTOGRAM_BINS + 1)
    inside, outside = (np.histogram(1.0 / (1.0 + np.exp(-odds)), edges)[0] / len(odds) for odds in (inside, outside))
    return {"edges": edges.tolist(), "inside": inside.tolist(), "outside": outside.tolist()}
