"""From the recalls of small runs to the recall of a larger one, with an interval. Knows nothing of training.

Scaling laws of contrastive models are straight lines in logarithms: of the error (Cherti et al. 2023, arXiv 2212.07143), and, as small
models have it, of recall itself. Which of them holds is not known beforehand, and they part where one extrapolates, so all of `FORMS` are
fitted to what recall exceeds chance, in the number of pairs and in samples seen (two inputs, as in Hoffmann et al. 2022, arXiv 2203.15556).
Each run counts by its precision; the interval is over the forms, over the held-out pairs (bootstrap) and over what a run with another
seed would have given. Runs near chance say little, so there is a weak expectation of the exponents (`EXPONENT`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
LEVEL = 0.9
FEWEST = 4  # rungs: two inputs and a constant leave one to be wrong
# Spread of mean recall@10 from seed to seed, as a share of recall times what is missed: about a tenth in benchmarks/results/ping_gain.json
# (three seeds an arm: 0.03 to 0.15). A ladder of a handful of rungs cannot measure it.
RUN_NOISE = 0.1
# Of recall above chance, in pairs and in samples seen: what is expected before any run, and how far off that may be (a standard deviation).
# Pairs of runs in benchmarks/results/ping_gain_tuning.json (1,500 and 5,000 pairs, 20 and 40 epochs) have 0.27 to 0.43.
EXPONENT, EXPONENT_SPREAD = 0.5, 0.5
WIDE = 4.0  # high over low, above which a forecast decides nothing
EDGE = 1e-4  # recalls are kept this far from 0 and 1
CENTRE = (math.log(1000), math.log(20_000))  # inputs are counted from here, for the sake of numbers alone


@dataclass(frozen=True)
class Form:
    """A straight line in logarithms: of `link(recall)`."""

    name: str
    link: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]  # d link / d recall


FORMS = (
    Form("recall is a power law", np.log, lambda y: np.exp(np.minimum(y, 0.0)), lambda r: 1 / r),
    Form("odds are a power law", lambda r: np.log(r / (1 - r)), lambda y: 1 / (1 + np.exp(-y)), lambda r: 1 / (r * (1 - r))),
    Form("error is a power law", lambda r: -np.log(1 - r), lambda y: -np.expm1(-np.maximum(y, 0.0)), lambda r: 1 / (1 - r)),
)


@dataclass(frozen=True)
class Rung:
    """A finished pilot: pairs, samples seen, and the recall of each resampling of the held-out pairs [B], first the whole set's."""

    pairs: int
    samples: int
    recall: np.ndarray


@dataclass(frozen=True)
class Forecast:
    """Draws [n] of the recall that one run would reach; `why` says why they should not be believed, "" where nothing speaks against."""

    draws: np.ndarray
    why: str = ""

    @property
    def value(self) -> float:
        return float(np.median(self.draws))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        low, high = np.quantile(self.draws, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def described(self) -> dict[str, float | str]:
        low, high = self.interval()
        return {"recall": self.value, "low": low, "high": high, **({"why_not": self.why} if self.why else {})}


def resampled(hits: Mapping[str, tuple[np.ndarray, np.ndarray]], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Mean recall of both directions, [1 + draws]: of all held-out pairs, then of resampled ones (the same for every model).

    hits: by direction the hit of every query in [0, 1], and the pair it belongs to (captions of a pair are drawn together).
    """
    units = np.unique(np.concatenate([unit for _, unit in hits.values()]))
    rng = np.random.default_rng(seed)
    total = np.zeros(draws + 1)
    sums = {}
    for name, (hit, unit) in hits.items():
        place = np.searchsorted(units, unit)
        sums[name] = np.bincount(place, hit, len(units)), np.bincount(place, minlength=len(units)).astype(float)
    for number in range(draws + 1):
        weight = np.ones(len(units)) if number == 0 else np.bincount(rng.integers(len(units), size=len(units)), minlength=len(units))
        total[number] = np.mean([weight @ found / max(weight @ asked, 1e-9) for found, asked in sums.values()])
    return total


def forecast(rungs: Sequence[Rung], pairs: float, samples: float, chance: float = 0.0, seed: int = 0) -> Forecast:
    """The recall of a run over `pairs` that sees `samples`. chance: what a model that knows nothing reaches.

    Raises ValueError with fewer than FEWEST rungs.
    """
    if len(rungs) < FEWEST:
        raise ValueError(f"{len(rungs)} pilots; a forecast needs {FEWEST}")
    rng = np.random.default_rng(seed)
    recall = np.stack([rung.recall for rung in rungs])  # [rungs, 1 + B]
    spread = recall[:, 1:].std(axis=1)
    above = (recall - chance) / (1 - chance)
    # A run at chance is known to be low, not how low: no lower than half of its own spread.
    above = np.clip(above, np.maximum(spread / 2, EDGE)[:, None], 1 - EDGE)
    inputs = design([rung.pairs for rung in rungs], [rung.samples for rung in rungs])
    target = design([pairs], [samples])[0]
    drawn, misfit = zip(*(_drawn(form, above, spread, inputs, target, rng) for form in FORMS), strict=True)
    # Forms count by how well they fit the pilots: the likelihood of normal errors.
    shares = np.exp(-0.5 * (np.array(misfit) - min(misfit)))
    counts = np.round(len(FORMS) * DRAWS * shares / shares.sum()).astype(int)
    mixed = np.concatenate([rng.choice(one, size) for one, size in zip(drawn, counts, strict=True)])
    made = Forecast(np.clip(chance + (1 - chance) * mixed, 0.0, 1.0))
    longest = recall[int(np.argmax([rung.samples for rung in rungs]))]
    return Forecast(made.draws, doubts(made, longest, chance))


def design(pairs: Sequence[float], samples: Sequence[float]) -> np.ndarray:
    """[n, 3]: 1, the logarithm of pairs, the logarithm of samples seen."""
    return np.stack([np.ones(len(pairs)), np.log(pairs), np.log(samples)], axis=1)


def _drawn(
    form: Form, above: np.ndarray, spread: np.ndarray, inputs: np.ndarray, target: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """[B] recalls above chance at the target: a weighted fit to every resampling, and the scatter of single runs around the line.

    And how badly the form fits: the sum of squared residuals, in units of what they are expected to be.
    """
    slope, whole = form.slope(above[:, 0]), above[:, 0]
    runs = slope * RUN_NOISE * whole * (1 - whole)
    level = float(np.average(slope * whole, weights=whole))  # what an exponent of 1 is in units of the link
    precision = np.concatenate([1 / np.hypot(slope * spread, runs), np.full(2, 1 / (EXPONENT_SPREAD * level))])
    expected = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    rows = np.concatenate([inputs - [0.0, *CENTRE], expected])
    y = np.concatenate([form.link(above), np.full((2, above.shape[1]), EXPONENT * level)])
    solve = np.linalg.pinv(rows * precision[:, None]) * precision
    place = (target - [0.0, *CENTRE]) @ solve
    off = (y[:, 0] - rows @ (solve @ y[:, 0])) * precision
    residual = off[: len(whole)]
    worse = max(1.0, math.sqrt(float(residual @ residual) / max(1, len(whole) - 3)))
    fitted = place @ y[:, 1:]
    doubt = math.hypot(
        float(np.linalg.norm(place[: len(whole)] * runs)), float(np.linalg.norm(place[len(whole) :]) * EXPONENT_SPREAD * level)
    )
    line = form.inverse(fitted + worse * doubt * rng.standard_normal(fitted.shape))
    held_out = float(np.median(whole * (1 - whole) / np.maximum(spread, EDGE) ** 2))
    return _one_run(np.clip(line, EDGE, 1 - EDGE), held_out, rng), float(off @ off)


def _one_run(recall: np.ndarray, held_out: float, rng: np.random.Generator) -> np.ndarray:
    """What single runs measure whose expectation is `recall`: seeds, and as many held-out pairs as make the pilots' spread."""
    noise = np.hypot(RUN_NOISE * recall * (1 - recall), np.sqrt(recall * (1 - recall) / held_out))
    return np.clip(recall + noise * rng.standard_normal(recall.shape), 0.0, 1.0)


def doubts(made: Forecast, longest: np.ndarray, chance: float) -> str:
    """Why a forecast should not be believed. longest: recalls [1 + B] of the pilot that saw most."""
    if float(np.quantile(longest[1:], 0.05)) <= chance:
        return "the pilots cannot be told from chance: give them more time (--pilot), or check the captions with `clipling data inspect`"
    low, high = made.interval()
    if high > WIDE * max(low, EDGE):
        return f"the interval is wide ({high / max(low, EDGE):.0f} times from end to end): it decides nothing; give more time (--pilot)"
    return ""


def shifted(made: Forecast, plain: np.ndarray, other: np.ndarray, seed: int = 0) -> tuple[Forecast, dict[str, float]]:
    """The forecast of a variant of which one pilot was run beside a plain one, and the difference of the two at the pilots' size.

    plain, other: recalls of the resamplings [1 + B]. Assumed is that the ratio of their odds stays what it is at the pilots' size.
    """
    rng = np.random.default_rng(seed)
    plain, other = (np.clip(r, EDGE, 1 - EDGE) for r in (plain, other))
    odds = lambda r: np.log(r / (1 - r))  # noqa: E731
    noise = rng.standard_normal(len(plain) - 1) * RUN_NOISE * math.sqrt(2)
    gain = odds(other)[1:] - odds(plain)[1:] + noise
    base = odds(np.clip(made.draws, EDGE, 1 - EDGE))
    moved = 1 / (1 + np.exp(-(base + rng.choice(gain, len(base)))))
    apart = 1 / (1 + np.exp(-(odds(plain)[1:] + gain))) - plain[1:]
    low, high = np.quantile(apart, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Forecast(moved, made.why), {"difference": float(other[0] - plain[0]), "low": float(low), "high": float(high)}
