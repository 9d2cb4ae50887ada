"""How sure a number is: the bootstrap over pairs, and paired differences over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_CHUNK = 1 << 24  # drawn units in memory at once


def interval(
    values: np.ndarray,
    unit: np.ndarray | None = None,
    *,
    level: float = 0.95,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values [q]` (Efron 1979), the same for the same seed.

    `unit [q]` names what is resampled: all queries of one unit (the captions of an image, the drawings of a group) are
    drawn together, because they are not independent. Without it every value is its own unit. Differences of two models on
    the same queries give a paired interval.
    """
    return percentiles(bootstrap(values, unit, samples=samples, seed=seed), level)


def bootstrap(values: np.ndarray, unit: np.ndarray | None = None, *, samples: int = 2000, seed: int = 0) -> np.ndarray:
    """float64 [samples]: means of `values [q]` over units drawn with replacement.

    Two calls with the same seed and the same set of units draw the same units, so that their results may be added.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("an interval needs at least one value")
    number = np.arange(len(values)) if unit is None else np.unique(unit, return_inverse=True)[1].reshape(-1)
    total = np.bincount(number, weights=values)
    count = np.bincount(number).astype(np.float64)
    rng, means = np.random.default_rng(seed), []
    chunk = max(1, _CHUNK // len(total))
    for start in range(0, samples, chunk):
        drawn = rng.integers(0, len(total), size=(min(chunk, samples - start), len(total)))
        means.append(total[drawn].sum(1) / count[drawn].sum(1))
    return np.concatenate(means)


def percentiles(means: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of bootstrap means."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a share between 0 and 1, such as 0.95")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Paired:
    """The difference of two arms over the seeds that both have."""

    values: list[float]  # one difference a seed
    mean: float
    spread: float | None  # standard deviation over seeds (n - 1); None with one seed
    low: float | None  # 95 % t interval of the mean; None with one seed
    high: float | None


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """`first[s] - second[s]` over seeds: mean, spread, and the Student-t interval of the mean."""
    if len(first) != len(second) or not len(first):
        raise ValueError(f"paired values need the same seeds on both sides, got {len(first)} and {len(second)}")
    values = [float(a) - float(b) for a, b in zip(first, second)]
    mean = sum(values) / len(values)
    if len(values) == 1:
        return Paired(values, mean, None, None, None)
    from scipy.stats import t

    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    reach = float(t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    return Paired(values, mean, spread, mean - reach, mean + reach)
