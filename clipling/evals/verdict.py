"""The first lines of a report: what was shown, at which budget, how surely; and what was not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from clipling.evals.chance import KS, chance, judged, too_few
from clipling.evals.learned import FEW, no_better_than_start
from clipling.evals.measure import Cell, Difference, budgets_differ, with_means
from clipling.evals.results import Result
from clipling.evals.runs import Arm

Tone = Literal["gain", "unclear", "loss", "unequal", "alone"]


@dataclass
class Row:
    """An arm with all its numbers."""

    arm: Arm
    cells: dict[str, Cell]
    budget: dict[str, Any]
    difference: dict[str, Difference] | None  # None for the baseline, and where there is none


@dataclass
class Verdict:
    """`title` in two or three words, `text` the first line, `points` what belongs to it, `warnings` what weakens it."""

    tone: Tone
    title: str
    text: str
    points: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def judge(
    rows: Sequence[Row],
    baseline: Arm | None,
    references: Sequence[Result],
    warnings: Sequence[str] = (),
    pairs: int | None = None,
    split: str = "val",
) -> Verdict:
    """The honest verdict over all rows. Guided arms are judged against the baseline, every arm against its own start.

    `pairs`: how many the numbers are measured on, None where that is not known; they decide which recall@k is judged by.
    """
    metric = judged(pairs)
    if metric is None:
        text = too_few(pairs, split)
        return Verdict("unclear", "Too few pairs", f"{text[0].upper()}{text[1:]}.", [], list(warnings))
    base = next((row for row in rows if row.arm is baseline), None)
    best = best_guided(rows, metric)
    if base is None or best is None or best is base:
        verdict = _alone(rows, base, metric)
    else:
        guided = [row for row in rows if row.arm.kind == "guided"]
        verdict = _compared(best, base, metric)
        if len(guided) > 1:
            verdict.points.append(f"{best.arm.label} is the best of {len(guided)} guided arms; picking the best of several flatters it.")
        _against_controls(verdict, rows, best, metric)
    _against_start(verdict, rows)
    _against_references(verdict, rows, references, metric)
    verdict.points += _not_judged(metric, pairs)
    verdict.warnings += warnings
    return verdict


def best_guided(rows: Sequence[Row], metric: str) -> Row | None:
    """The guided arm with the highest `metric`; controls are not candidates."""
    guided = [row for row in rows if row.arm.kind == "guided"]
    return max(guided, key=lambda row: row.cells[metric].value, default=None)


def _alone(rows: Sequence[Row], base: Row | None, metric: str) -> Verdict:
    best = max(rows, key=lambda row: row.cells[metric].value)
    text = f"{best.arm.label} reaches {percent(best.cells[metric].value)} {metric}{_range(best.cells[metric])}."
    missing = "a run of plain CLIP at the same budget" if base is None else "a guided run at the same budget"
    return Verdict("alone", "No comparison", text, [f"What guidance is worth here cannot be said: {missing} is missing."])


def _compared(best: Row, base: Row, metric: str) -> Verdict:
    assert best.difference is not None
    apart = best.difference[metric]
    plain = "plain CLIP" if base.arm.kind == "plain" else base.arm.label
    unequal = budgets_differ(best.budget, base.budget)
    points = [_how_sure(apart), _cost(best, base)]
    if set(best.arm.seeds) != set(base.arm.seeds):
        common = sorted(set(best.arm.seeds) & set(base.arm.seeds))
        shared = f"the seeds that both have ({', '.join(map(str, common))})" if common else "one run of each, as they share no seed"
        points.append(f"The comparison is over {shared}; the table shows all.")
    numbers = f"{percent(apart.ours)} {metric} against {percent(apart.theirs)}"
    if unequal:
        text = f"{best.arm.label} scores {numbers} of {plain}, but at another budget. This does not show what guidance is worth."
        return Verdict("unequal", "Budgets differ", text, points, ["The budgets differ: " + "; ".join(unequal) + "."])
    terms = "at the same budget" if len(apart.seeds.values) > 1 else "at the same budget, on one seed"
    match apart.reading:
        case "better":
            text = f"{best.arm.label} beats {plain} {terms}: {numbers}."
            return Verdict("gain", "Guidance helps here", text, points)
        case "worse":
            text = f"{best.arm.label} is worse than {plain} {terms}: {numbers}."
            return Verdict("loss", "Guidance hurts here", text, points)
        case "unclear":
            text = f"No difference is shown between {best.arm.label} and {plain} {terms}: {numbers}."
            return Verdict("unclear", "No difference shown", text, points)
        case _:
            text = f"{best.arm.label} scores {numbers} of {plain}; with one seed and no interval, this is not a result yet."
            return Verdict("unclear", "Not tested", text, points)


def _how_sure(apart: Difference) -> str:
    seeds, said = apart.seeds, f"The difference is {signed(apart.seeds.mean)} points (mean of both directions)"
    if seeds.spread is not None:
        relation = "more than" if abs(seeds.mean) > 2 * seeds.spread else "not more than"
        said += f", {relation} twice its spread over {len(seeds.values)} seeds ({100 * seeds.spread:.1f})"
    if apart.low is not None and apart.high is not None:
        said += f"; 95 % interval over pairs {signed(apart.low)} to {signed(apart.high)}"
    if seeds.spread is None:
        said += "; one seed: what another seed would change is not known"
    return said + "."


def _cost(best: Row, base: Row) -> str:
    ours, theirs = best.budget, base.budget
    ratio = ours["seconds"] / theirs["seconds"] if theirs["seconds"] else math.nan
    return (
        f"Budget: {ours['samples_seen']:,} samples seen, {millions(ours['parameters'])} parameters "
        f"({millions(ours['parameters_without_token_rows'])} without token rows); "
        f"{best.arm.label} took {ratio:.2f} times the seconds of {base.arm.label} (training steps by the clock, whatever else the machine "
        "was doing; building a bank is not counted)."
    )


def _against_controls(verdict: Verdict, rows: Sequence[Row], best: Row, metric: str) -> None:
    """What random neighbours reach; where that is no less, it is not the neighbours that help."""
    for row in rows:
        if row.arm.kind == "control":
            value = row.cells[metric].value
            gap = 100 * (best.cells[metric].value - value)
            said = f"With random neighbours ({row.arm.label}) it is {percent(value)}, "
            if gap > 0:
                verdict.points.append(f"{said}{gap:.1f} points below {best.arm.label}.")
            else:
                verdict.warnings.append(f"{said}no less than {best.arm.label}: it is not the neighbours that help.")


def _against_start(verdict: Verdict, rows: Sequence[Row]) -> None:
    """An arm that did not learn is the first thing to say."""
    for row in rows:
        for run in row.arm.runs:
            found = no_better_than_start(run.summary)
            if found is not None:
                metric, start, end = found
                few = int(run.summary["val_pairs"]) < FEW
                title = "Too few held-out pairs to tell whether training helped" if few and end > start else "Training did not help"
                verdict.tone, verdict.title = "loss", title
                verdict.text = (
                    f"{row.arm.label} (seed {run.seed}) does not beat its untrained start on val: "
                    f"{percent(end)} {metric} against {percent(start)}. " + verdict.text
                )
                return


def _against_references(verdict: Verdict, rows: Sequence[Row], references: Sequence[Result], metric: str) -> None:
    """A model that could be had without training, and is better, is the first thing to say."""
    top = max(row.cells[metric].value for row in rows)
    scored = [(with_means(r.metrics)[metric], r) for r in references if metric in with_means(r.metrics)]
    if not scored:
        return
    value, best = max(scored, key=lambda pair: pair[0])
    if value >= top:
        verdict.tone = "loss"
        verdict.title = "A ready model is better"
        verdict.text = f"{best.model} reaches {percent(value)} {metric} without this training. " + verdict.text
    else:
        verdict.points.append(f"The best ready-made model tried, {best.model}, reaches {percent(value)} {metric}.")


def _not_judged(metric: str, pairs: int | None) -> list[str]:
    """Why it is not the recall@10 that readers expect."""
    largest = f"recall@{max(KS)}"
    level = chance(largest, pairs)
    if metric == largest or level is None:
        return []
    return [f"On {pairs} pairs chance alone reaches {percent(level)} {largest}, so this is judged by {metric}."]


def _range(cell: Cell) -> str:
    return "" if cell.low is None else f" (95 % interval over pairs {100 * cell.low:.1f} to {100 * cell.high:.1f})"


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def signed(fraction: float) -> str:
    """Points of percent with a sign, a true minus."""
    return f"{100 * fraction:+.1f}".replace("-", "−")


def millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"
