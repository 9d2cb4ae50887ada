"""The first lines of a suite's report: which model is better, how surely, at which budget; and whether training was worth it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from clipling.evals.chance import judged
from clipling.evals.intervals import interval, paired
from clipling.evals.results import CLASSIFICATION, RETRIEVAL, Result
from clipling.evals.suite.compared import Comparison, Gap, ModelResults
from clipling.evals.suite.run import read_items

# What is in a budget and must be equal for a comparison of methods; seconds are the machine's, and are stated.
BUDGET = {"samples_seen": "samples seen", "parameters": "parameters"}


def compare(models: Sequence[ModelResults], folders: Mapping[str, Path]) -> Comparison:
    """Judges the first model of role `model` against every other. `folders`: where the results of each label are.

    Differences are paired: both models on the same pictures or captions, with the bootstrap interval of the mean difference.
    """
    ours = next(model for model in models if model.role == "model")
    gaps = [gap for other in models if other is not ours for gap in _gaps(ours, other, folders)]
    others = [model for model in models if model.role == "model" and model is not ours]
    title, text, tone = _headline(ours, others, gaps)
    lost = [line for role in ("ready", "untrained") for line in _not_beaten(ours, models, gaps, role)]
    points = [_sentence(gap) for gap in gaps if gap.b in {m.label for m in others}]
    if lost:
        ready = any(model.role == "ready" and model.label in line for model in models for line in lost)
        tone, title = "loss", "A ready model is no worse" if ready else "Training did not help everywhere"
        text = " ".join(lost) + " " + text
    points += _beaten(ours, models, gaps)
    points += list(_over_seeds(models))
    warnings = [line for other in others for line in _budgets(ours, other)] + _uncompared(ours, models, gaps)
    warnings += sorted({f"{m.label}: {line}" for m in models for r in m.results for line in r.warnings})
    return Comparison(tone, title, text.strip(), points, warnings, gaps)


def main_metrics(result: Result) -> list[str]:
    """What verdicts are about: acc1, recall@k of both directions at the largest k that tells something, nDCG@10."""
    if result.task == CLASSIFICATION:
        return ["acc1"]
    if result.task == RETRIEVAL:
        name = judged(result.size.get("pairs"))
        return [m for m in (f"i2t_{name}", f"t2i_{name}") if m in result.metrics] if name else []
    return ["ndcg@10"] if result.task == "queries" else []


def _gaps(a: ModelResults, b: ModelResults, folders: Mapping[str, Path]) -> Iterator[Gap]:
    theirs = {(r.dataset, r.task): r for r in b.results}
    for ours in a.results:
        other = theirs.get((ours.dataset, ours.task))
        metrics = main_metrics(ours)
        if other is None or not metrics or not _same(ours, other):
            continue
        left, right = read_items(folders[a.label], ours), read_items(folders[b.label], other)
        for metric in metrics:
            if metric not in left or metric not in right or left[metric][0].shape != right[metric][0].shape:
                continue
            apart = left[metric][0] - right[metric][0]
            low, high = interval(apart, left[metric][1])
            yield Gap(ours.dataset, ours.task, metric, a.label, b.label, float(apart.mean()), low, high, len(apart))


def _same(a: Result, b: Result) -> bool:
    return a.data_hash == b.data_hash and a.settings == b.settings and a.prompts == b.prompts


def _headline(ours: ModelResults, others: Sequence[ModelResults], gaps: Sequence[Gap]) -> tuple[str, str, str]:
    """(title, text, tone) before what is lost to others is put in front."""
    said = [f"{_number(r, m)} on {r.dataset}" for r in ours.results for m in main_metrics(r)]
    text = f"{ours.label} reaches {_list(said)}." if said else f"{ours.label} was measured; no zero-shot number is among the results."
    if not others:
        return "Measured", text, "plain"
    theirs = [gap for gap in gaps if gap.b in {m.label for m in others}]
    better, worse = [g for g in theirs if g.low > 0], [g for g in theirs if g.high < 0]
    if not theirs:
        return "Not comparable", text, "plain"
    if better and not worse:
        whole = len(better) == len(theirs)
        title = "Better everywhere" if whole else "Better in part"
        return title, f"{ours.label} is better than {_list(sorted({g.b for g in better}))}{'' if whole else ' in part'}. " + text, "gain"
    if worse and not better:
        return "Worse", f"{ours.label} is worse than {_list(sorted({g.b for g in worse}))}. " + text, "loss"
    if better and worse:
        return "Mixed", f"{ours.label} is better in {len(better)} of {len(theirs)} comparisons and worse in {len(worse)}. " + text, "plain"
    return (
        "No difference shown",
        f"{ours.label} and {_list([m.label for m in others])} cannot be told apart on these pictures. " + text,
        "plain",
    )


def _not_beaten(ours: ModelResults, models: Sequence[ModelResults], gaps: Sequence[Gap], role: str) -> Iterator[str]:
    for model in models:
        if model.role != role:
            continue
        weak = [gap for gap in gaps if gap.b == model.label and gap.low <= 0]
        if weak:
            what = "its untrained start" if role == "untrained" else f"the ready-made {model.label}"
            where = _list([f"{gap.metric} of {gap.dataset} ({_signed(gap)})" for gap in weak])
            yield f"{ours.label} does not beat {what} beyond the 95 % interval in {where}."


def _beaten(ours: ModelResults, models: Sequence[ModelResults], gaps: Sequence[Gap]) -> Iterator[str]:
    for model in models:
        own = [gap for gap in gaps if gap.b == model.label]
        if model.role in ("untrained", "ready") and own and all(gap.low > 0 for gap in own):
            what = "its untrained start" if model.role == "untrained" else f"the ready-made {model.label}"
            yield f"{ours.label} beats {what}: {_list([f'{gap.metric} of {gap.dataset} {_signed(gap)}' for gap in own])}."
    if not any(model.role == "ready" for model in models):
        yield "No ready-made model was measured beside it (--ready MODEL): what could be had without training is not shown."


def _over_seeds(models: Sequence[ModelResults]) -> Iterator[str]:
    """Paired differences over the seeds that two recipes have in common."""
    groups: dict[str, dict[int, ModelResults]] = {}
    for model in models:
        seed = re.match(r"seed(\d+)", model.results[0].pretrained) if model.results else None
        if seed and model.role == "model":
            groups.setdefault(model.results[0].model, {})[int(seed[1])] = model
    names = list(groups)
    for name in names[1:]:
        seeds = sorted(groups[names[0]].keys() & groups[name].keys())
        if len(seeds) < 2:
            continue
        for task in _common(groups[names[0]][seeds[0]], groups[name][seeds[0]]):
            values = [[_value(groups[n][seed], task) for seed in seeds] for n in (names[0], name)]
            if any(value is None for side in values for value in side):
                continue
            apart = paired(*values)  # type: ignore[arg-type]
            ends = [_points(end) for end in (apart.low, apart.high) if end is not None]
            yield (
                f"Over {len(seeds)} seeds, {names[0]} − {name}: {task[2]} of {task[0]} {_points(apart.mean)} "
                f"± {100 * (apart.spread or 0):.1f} points (95 % interval of the mean {' to '.join(ends)})."
            )


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.1f}".replace("-", "−")


def _common(a: ModelResults, b: ModelResults) -> list[tuple[str, str, str]]:
    theirs = {(r.dataset, r.task) for r in b.results}
    return [(r.dataset, r.task, m) for r in a.results if (r.dataset, r.task) in theirs for m in main_metrics(r)]


def _value(model: ModelResults, task: tuple[str, str, str]) -> float | None:
    return next((r.metrics.get(task[2]) for r in model.results if (r.dataset, r.task) == task[:2]), None)


def _budgets(a: ModelResults, b: ModelResults) -> list[str]:
    if not a.results or not b.results:
        return []
    one, two, said = a.results[0].budget, b.results[0].budget, []
    for key, words in BUDGET.items():
        if (key in one) != (key in two):
            said.append(f"{words} of {a.label if key in two else b.label} are not known")
        elif key in one and abs(one[key] - two[key]) > 0.01 * max(one[key], two[key]):
            said.append(f"{int(one[key]):,} {words} against {int(two[key]):,}")
    return [f"The budgets of {a.label} and {b.label} differ: {_list(said)}."] if said else []


def _uncompared(ours: ModelResults, models: Sequence[ModelResults], gaps: Sequence[Gap]) -> list[str]:
    """Results of other models on other data, or by other settings, are shown and not compared."""
    known = {(g.b, g.dataset, g.task) for g in gaps}
    found = []
    for model in models:
        if model is ours:
            continue
        for r in model.results:
            mine = next((o for o in ours.results if (o.dataset, o.task) == (r.dataset, r.task)), None)
            if mine is not None and main_metrics(mine) and (model.label, r.dataset, r.task) not in known:
                found.append(f"{model.label} on {r.dataset} ({r.task}) was measured on other data or by other settings: not compared.")
    return found


def _sentence(gap: Gap) -> str:
    reading = "better" if gap.low > 0 else "worse" if gap.high < 0 else "no difference shown"
    return f"{gap.metric} of {gap.dataset}, {gap.a} − {gap.b}: {_signed(gap)}: {reading}."


def _signed(gap: Gap) -> str:
    return f"{_points(gap.mean)} points, {_points(gap.low)} to {_points(gap.high)}"


def _number(result: Result, metric: str) -> str:
    ends = result.intervals.get(metric)
    reach = f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else ""
    scale = result.metrics[metric]
    assert np.isfinite(scale)
    return f"{100 * scale:.1f} % {metric}{reach}"


def _list(parts: Sequence[str]) -> str:
    parts = list(parts)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else "nothing"
