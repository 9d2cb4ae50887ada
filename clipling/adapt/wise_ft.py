"""WiSE-FT: weights between the start's and the tuned ones keep what the start knew (Wortsman et al. 2022, arXiv 2109.01903)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipling.errors import UserError
from clipling.models.dual import Student

State = Mapping[str, Tensor]
Measure = Callable[[Student], Mapping[str, float]]


@dataclass(frozen=True)
class Interpolated:
    """What was measured at every share of the tuned weights, and which share was chosen."""

    chosen: float
    rows: list[dict[str, float]]  # share, score, and every metric
    reason: str


def between(start: State, tuned: State, share: float) -> dict[str, Tensor]:
    """(1 - share) start + share tuned, tensor by tensor; counters are the tuned ones'. 0 and 1 give the very tensors."""
    if start.keys() != tuned.keys() or any(one.shape != tuned[name].shape for name, one in start.items()):
        raise UserError("WiSE-FT needs two models of one shape: the tuned one has other tensors than the start")
    made = {}
    for name, one in start.items():
        other = tuned[name]
        if not one.is_floating_point() or share == 1:
            made[name] = other
        elif share == 0:
            made[name] = one
        else:
            made[name] = torch.lerp(one.to(other), other, share)
    return made


def standard_error(score: float, pairs: int) -> float:
    """Of a recall over `pairs` queries: that of a proportion. Recalls at several k are correlated, so a mean of them has no smaller one."""
    return math.sqrt(max(score * (1 - score), 0.0) / max(pairs, 1))


def choose(rows: Sequence[Mapping[str, float]], pairs: int) -> tuple[float, str]:
    """The smallest share whose score on val is within one standard error of the best: the least change that val cannot tell from
    the best (the one-standard-error rule; our choice, the paper reports all shares)."""
    best = max(rows, key=lambda row: (row["score"], -row["share"]))
    slack = standard_error(best["score"], pairs)
    chosen = min(row["share"] for row in rows if row["score"] >= best["score"] - slack)
    said = (
        f"best on val at share {best['share']:g} ({100 * best['score']:.1f} %, standard error {100 * slack:.1f} points over {pairs} pairs)"
    )
    return chosen, f"{said}; the smallest share within one standard error is {chosen:g}"


def wise_ft(
    student: Student, start: State, shares: Sequence[float], measure: Measure, score: Callable[[Mapping[str, float]], float], pairs: int
) -> Interpolated:
    """Measures the student between `start` and its own (tuned) weights, and leaves it at the chosen share.

    measure: metrics of a student on val and on what is only watched; score: what is compared, of val alone, so that a
    watched set stays one that nothing was tuned on. shares: those to try, 1 for the tuned weights. pairs: queries of val.
    """
    tuned = {name: value.clone() for name, value in student.state_dict().items()}
    rows = []
    for share in sorted(set(shares)):
        student.load_state_dict(between(start, tuned, share))
        metrics = dict(measure(student))
        rows.append({"share": share, "score": score(metrics), **metrics})
    chosen, reason = choose(rows, pairs)
    student.load_state_dict(between(start, tuned, chosen))
    return Interpolated(chosen, rows, reason)
