"""Runs measured on one and the same set of pairs: values, spreads over seeds, intervals over pairs, differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipling.errors import UserError
from clipling.evals.chance import KS
from clipling.evals.evaluators import Retrieval
from clipling.evals.intervals import Paired, bootstrap, interval, paired, percentiles
from clipling.evals.retrieval import RetrievalRanks, metric_names
from clipling.evals.runs import Arm, Run
from clipling.models.hub import open_student

METRICS = tuple(metric_names())
MEANS = tuple(f"recall@{k}" for k in KS)
"""The means of both directions. Verdicts are about one of them (clipling.evals.chance.judged)."""

Hits = tuple[np.ndarray, np.ndarray]  # values [q], unit [q]


@dataclass
class Measured:
    """One student on the pairs of the comparison; features only where a gallery may want them."""

    ranks: RetrievalRanks
    image: np.ndarray | None = None  # [P, d]
    text: np.ndarray | None = None  # [T, d]


@dataclass(frozen=True)
class Cell:
    """One number of the table: a fraction, its standard deviation over seeds, its 95 % interval over pairs."""

    value: float
    spread: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference:
    """One metric of an arm minus that of the baseline, over the seeds that both have."""

    seeds: Paired
    ours: float  # mean of the arm over the paired seeds
    theirs: float  # of the baseline
    low: float | None  # 95 % bootstrap over pairs, both arms on the same queries
    high: float | None

    @property
    def reading(self) -> str:
        """better or worse: beyond twice the spread over seeds and with an interval that leaves out 0, as far as each is known.

        unclear: one of them says otherwise. untested: one seed and no interval.
        """
        tests = []
        if self.seeds.spread is not None:
            tests.append(abs(self.seeds.mean) > 2 * self.seeds.spread)
        if self.low is not None and self.high is not None:
            tests.append(self.low > 0 or self.high < 0)
        if not tests:
            return "untested"
        if not all(tests) or self.seeds.mean == 0:
            return "unclear"
        return "better" if self.seeds.mean > 0 else "worse"


def measure(arms: Sequence[Arm], evaluator: Retrieval) -> dict[int, Measured]:
    """Opens the student of every run and ranks; by `id` of the run. A run without a kept model is left out."""
    measured = {}
    for arm in arms:
        for run in arm.runs:
            if run.model is None:
                continue
            image, text = evaluator.features(open_student(run.model))
            ranks = evaluator.measure(image, text)
            measured[id(run)] = Measured(ranks, image, text) if run is arm.runs[0] else Measured(ranks)
    return measured


def values(run: Run, measured: Mapping[int, Measured]) -> dict[str, float]:
    """Fractions of a run: measured here where that was possible, otherwise what its summary says about its own val."""
    known = measured[id(run)].ranks.recall() if id(run) in measured else run.summary["val"]
    missing = [name for name in METRICS if name not in known]
    if missing:
        raise UserError(f"the summary of {run.folder} has no {', '.join(missing)}; was it evaluated by retrieval?")
    return with_means({name: float(known[name]) for name in METRICS})


def parts(mean: str) -> tuple[str, str]:
    """The two directions of a mean such as `recall@10`."""
    return f"i2t_{mean}", f"t2i_{mean}"


def with_means(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics and the means of both directions, where both are there."""
    known = {mean: [metrics[part] for part in parts(mean) if part in metrics] for mean in MEANS}
    return {**metrics, **{mean: sum(both) / 2 for mean, both in known.items() if len(both) == 2}}


def cells(arm: Arm, measured: Mapping[int, Measured]) -> dict[str, Cell]:
    """The numbers of one arm: means over seeds."""
    each = [values(run, measured) for run in arm.runs]
    found = {}
    for metric in (*METRICS, *MEANS):
        column = [v[metric] for v in each]
        low, high = _interval(metric, _mean_hits(arm.runs, measured, metric))
        spread = float(np.std(column, ddof=1)) if len(column) > 1 else None
        found[metric] = Cell(float(np.mean(column)), spread, low, high)
    return found


def difference(arm: Arm, baseline: Arm, measured: Mapping[int, Measured]) -> dict[str, Difference]:
    """By metric, `arm` minus `baseline` over common seeds; without a common seed the first runs of both are compared."""
    common = sorted(set(arm.seeds) & set(baseline.seeds))
    pairs = [(_of_seed(arm, s), _of_seed(baseline, s)) for s in common] or [(arm.runs[0], baseline.runs[0])]
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    found = {}
    for metric in (*METRICS, *MEANS):
        column, against = ([values(r, measured)[metric] for r in runs] for runs in (ours, theirs))
        left, right = _mean_hits(ours, measured, metric), _mean_hits(theirs, measured, metric)
        apart = None
        if left is not None and right is not None:
            apart = [(a - b, unit) for (a, unit), (b, _) in zip(left, right)]
        means = float(np.mean(column)), float(np.mean(against))
        found[metric] = Difference(paired(column, against), *means, *_interval(metric, apart))
    return found


def _of_seed(arm: Arm, seed: int) -> Run:
    return next(run for run in arm.runs if run.seed == seed)


def _mean_hits(runs: Sequence[Run], measured: Mapping[int, Measured], metric: str) -> list[Hits] | None:
    """Hits of each query, averaged over the runs; one entry a direction. None when a run was not measured."""
    if any(id(run) not in measured for run in runs):
        return None
    found = []
    for name in parts(metric) if metric in MEANS else (metric,):
        each = [measured[id(run)].ranks.hits(name) for run in runs]
        found.append((np.mean([hits for hits, _ in each], axis=0), each[0][1]))
    return found


def _interval(metric: str, hits: list[Hits] | None) -> tuple[float | None, float | None]:
    if hits is None:
        return None, None
    if metric not in MEANS:
        return interval(*hits[0])
    # The same seed draws the same pairs for both directions, so their means belong together.
    return percentiles(np.mean([bootstrap(*part) for part in hits], axis=0))


def budget(arm: Arm) -> dict[str, Any]:
    """What a run of an arm cost: samples seen and training pairs (the same for all its seeds), mean seconds, parameters."""
    summaries = [run.summary for run in arm.runs]
    parameters = summaries[0]["parameters"]
    return {
        "samples_seen": int(summaries[0]["samples_seen"]),
        "seconds": float(np.mean([s["seconds"] for s in summaries])),
        "parameters": int(parameters["total"]),
        "parameters_without_token_rows": int(parameters["total_without_token_rows"]),
        "train_pairs": int(summaries[0].get("train_pairs", 0)),
    }


def budgets_differ(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What makes two budgets unequal, in words; seconds are not part of it (they are stated), being the machine's."""
    said = []
    for key, words in (
        ("samples_seen", "samples seen"),
        ("parameters", "parameters"),
        ("train_pairs", "training pairs"),
    ):
        a, b = first[key], second[key]
        if abs(a - b) > 0.01 * max(a, b):
            said.append(f"{a:,} {words} against {b:,}")
    return said
