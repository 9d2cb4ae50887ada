"""Calibration: whether a probability of 80 % is right 8 times in 10, and what one temperature mends.

Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599). Letters: n pictures, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

from clipling.errors import UserError
from clipling.evals.retrieval import ranks
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.found import LABELLED, Found, floats
from clipling.evals.suite.subject import Subject

TEMPERATURES = (1e-2, 1e2)  # where the best one is looked for
FLAT = 1e-4  # logits whose spread is smaller say nothing: no temperature in that range makes them
BLOCK_BYTES = 64 << 20  # of fp64 logits held at once
Z95 = 1.959963984540054  # the normal distribution's 97.5 % quantile


def halves(keys: Sequence[str]) -> np.ndarray:
    """bool [n]: whether a picture is of the second half, by a hash of its key: the same whatever else is in the dataset.

    The hash is not the one that `Dataset.sample` orders by, so both halves of a sample are filled.
    """
    bits = [blake2b(key.encode("utf-8", "surrogatepass"), digest_size=1, person=b"half").digest()[0] & 1 for key in keys]
    return np.array(bits, dtype=bool)


def picture_scores(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(confidence, nll, brier), each fp64 [n], of `logits [n, C]` and `labels [n]`.

    confidence: the largest probability. nll: of the true class, in nats. brier: the squared distance of the probabilities
    from the one-hot label, summed over classes (Brier 1950), so 0 to 2 (twice the form for two classes that counts one of them).
    """
    rows, logp = np.arange(len(labels)), log_softmax(logits, axis=1)
    probability = np.exp(logp)
    true = probability[rows, labels]
    brier = (probability**2).sum(1) - true**2 + (1.0 - true) ** 2
    return probability.max(1), -logp[rows, labels], brier


def bin_numbers(confidence: np.ndarray, bins: int) -> np.ndarray:
    """int64 [n]: the bin of every confidence among `bins` of equal width, each open below and closed above (Guo et al.)."""
    return np.clip(np.searchsorted(np.linspace(0.0, 1.0, bins + 1), confidence, side="left") - 1, 0, bins - 1)


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """ECE (Guo et al., section 2): the mean over pictures of |accuracy - confidence| of their bin.

    `right [n]` is the probability that the answer is right: 0 or 1, or a share where classes are tied.
    """
    if not len(confidence):
        raise ValueError("a calibration error needs at least one picture")
    gap = np.bincount(bin_numbers(confidence, bins), weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def expected_error(confidence: np.ndarray, bins: int = 15) -> float:
    """The ECE that a perfectly calibrated model with these confidences shows by chance, about.

    A bin's sum of (right - confidence) is close to normal with variance V = sum of p (1 - p); the mean of its size is sqrt(2 V / pi).
    """
    variance = np.bincount(bin_numbers(confidence, bins), weights=confidence * (1.0 - confidence), minlength=bins)
    return float(np.sqrt(2.0 / np.pi * np.clip(variance, 0, None)).sum() / len(confidence))


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` trials (Wilson 1927); of use for few trials and shares near 0 or 1."""
    centre = share + Z95**2 / (2 * count)
    half = Z95 * np.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    whole = 1 + Z95**2 / count
    # A share of 0 or 1 is itself an end of the interval: rounding must not put it outside.
    return float(np.clip((centre - half) / whole, 0.0, share)), float(np.clip((centre + half) / whole, share, 1.0))


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> list[dict[str, Any]]:
    """The reliability curve: mean confidence, accuracy, count and 95 % interval of the accuracy of every bin that is not empty."""
    number, curve = bin_numbers(confidence, bins), []
    for b in np.unique(number):
        inside = number == b
        count, accuracy = int(inside.sum()), float(np.clip(right[inside].mean(), 0.0, 1.0))
        low, high = wilson(accuracy, count)
        curve.append({"confidence": float(confidence[inside].mean()), "accuracy": accuracy, "count": count, "low": low, "high": high})
    return curve


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T in TEMPERATURES for which softmax(logits / T) has the smallest mean NLL (Guo et al., section 4.2).

    NLL is convex in 1/T, so its slope there rises through at most one zero, which is sought over log T. Where the slope keeps one
    sign, T is an end of the range: the cold one when every answer is right, the hot one when answers are worse than chance.
    Logits without any spread fit every T alike: 1.
    """
    logits = np.asarray(logits, dtype=np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    if logits.min() > -FLAT:
        return 1.0
    true = logits[np.arange(len(labels)), labels].mean()

    def slope(log_t: float) -> float:
        return float((softmax(logits * np.exp(-log_t), axis=1) * logits).sum(1).mean() - true)

    cold, hot = np.log(TEMPERATURES)
    if slope(cold) <= 0:
        return TEMPERATURES[0]
    if slope(hot) >= 0:
        return TEMPERATURES[1]
    return float(np.exp(brentq(slope, cold, hot, xtol=1e-10)))


@dataclass(frozen=True)
class Calibration:
    """ECE, NLL and Brier score of zero-shot probabilities, before and after one temperature.

    The probabilities are softmax(scale * cosine) with the model's own scale. The temperature is fitted on the first half of the
    pictures and measured on the second (`halves`); it never changes which class is first. Tied classes share the credit for a
    right answer, so a constant model is calibrated, at chance.

    Settings:
        bins: of equal width, for ECE and the reliability curves.
    """

    task: ClassVar[str] = "calibration"
    takes: ClassVar[frozenset[str]] = frozenset({LABELLED})
    version: ClassVar[int] = 1
    headline: ClassVar[tuple[str, ...]] = ("ece", "ece_scaled", "nll", "brier", "temperature")
    lower: ClassVar[frozenset[str]] = frozenset({"ece", "nll", "brier", "ece_scaled", "nll_scaled", "brier_scaled", "ece_unscaled_half"})

    bins: int = 15

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise UserError(f"calibration: bins is {self.bins}; expected a whole number from 1, such as 15")

    def skipped(self, dataset: Dataset) -> str | None:
        second = halves(dataset.source.keys)
        least = int(min(second.sum(), (~second).sum()))
        return f"a temperature needs 2 pictures in each half, and one half holds {least}" if least < 2 else None

    def __call__(self, subject: Subject, dataset: Dataset) -> Found:
        images, classes, labels = subject.images(dataset), subject.classes(dataset), dataset.labelled.labels
        second = halves(dataset.source.keys)
        right = ranks(images, classes, labels, np.arange(len(classes))).hits(1)
        confidence, nll, brier = _scores(images, classes, labels, subject.scale)
        fitted = subject.scale * _cosines(images[~second], classes)
        temperature = fit_temperature(fitted, labels[~second])
        # Dividing logits by T is dividing the scale by T.
        scaled = _scores(images[second], classes, labels[second], subject.scale / temperature)
        metrics = {
            "ece": calibration_error(confidence, right, self.bins),
            "nll": nll.mean(),
            "brier": brier.mean(),
            "temperature": temperature,
            "ece_scaled": calibration_error(scaled[0], right[second], self.bins),
            "nll_scaled": scaled[1].mean(),
            "brier_scaled": scaled[2].mean(),
            "ece_unscaled_half": calibration_error(confidence[second], right[second], self.bins),
        }
        chance = expected_error(confidence, self.bins)
        return Found(
            metrics=floats(metrics),
            items={"nll": nll, "brier": brier, "nll_scaled": scaled[1], "brier_scaled": scaled[2]},
            details={
                "curve": reliability(confidence, right, self.bins),
                "curve_scaled": reliability(scaled[0], right[second], self.bins),
                "expected_ece": chance,
            },
            notes=_notes(second, temperature, chance),
        )


def _cosines(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return np.asarray(images, dtype=np.float64) @ np.asarray(classes, dtype=np.float64).T


def _scores(images: np.ndarray, classes: np.ndarray, labels: np.ndarray, scale: float) -> tuple[np.ndarray, ...]:
    """`picture_scores` of softmax(scale * cosine), a block of pictures at a time."""
    step = max(1, BLOCK_BYTES // (8 * len(classes)))
    parts = [slice(start, start + step) for start in range(0, len(labels), step)]
    found = [picture_scores(scale * _cosines(images[part], classes), labels[part]) for part in parts]
    return tuple(np.concatenate(column) for column in zip(*found))


def _notes(second: np.ndarray, temperature: float, chance: float) -> list[str]:
    notes = [
        f"The temperature is fitted on {int((~second).sum())} pictures; what is named scaled or half is measured on the other "
        f"{int(second.sum())}.",
        f"A perfectly calibrated model would show an ECE of about {chance:.4f} on these {len(second)} pictures, by chance alone.",
    ]
    if temperature in TEMPERATURES:
        notes.append(f"The temperature {temperature:g} is an end of the range that was searched, so NLL may fall further beyond it.")
    return notes
