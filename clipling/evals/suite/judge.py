"""The first lines of a suite's report: which model is better, how surely, at which budget; and whether training was worth it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from clipling.evals.chance import judged
from clipling.evals.intervals import interval, paired
from clipling.evals.results import CLASSIFICATION, RETRIEVAL, Result
from clipling.evals.suite.compared import Comparison, Gap, ModelResults
from clipling.evals.suite.items import read_items

# What is in a budget and must be equal for a comparison of methods; seconds are the machine's, and are stated.
BUDGET = {"samples_seen": "samples seen", "parameters": "parameters"}


def compare(models: Sequence[ModelResults]) -> Comparison:
    """Judges the first model of role `model` against every other; of untrained starts against its own alone.

    Differences are paired: both models on the same pictures or captions, with the bootstrap interval of the mean difference.
    """
    ours = next(model for model in models if model.role == "model")
    rivals = [m for m in models if m is not ours and (m.role != "untrained" or m.start_of & ours.hashes)]
    gaps, missing = _gaps(ours, rivals)
    others = [model for model in rivals if model.role == "model"]
    title, text, tone = _headline(ours, others, gaps)
    points = [_sentence(gap) for gap in gaps if gap.b in {m.label for m in others}]
    if missing:
        tone, title, text = "loss", "Could not be compared", f"{' '.join(missing)} {text}"
    lost = {role: list(_not_beaten(ours, rivals, gaps, role)) for role in ("ready", "untrained")}
    if lost["ready"] or lost["untrained"]:
        tone, title = "loss", "A ready model is no worse" if lost["ready"] else "Training did not help everywhere"
        text = " ".join([*lost["ready"], *lost["untrained"], text])
    points += _beaten(ours, rivals, gaps)
    points += list(_over_seeds(models))
    warnings = [line for other in others for line in _budgets(ours, other)] + _uncompared(ours, rivals) + _ownerless(models)
    warnings += sorted({f"{m.label}: {line}" for m in models for r in m.results for line in r.warnings})
    return Comparison(tone, title, text.strip(), points, warnings, gaps)


def main_metrics(result: Result) -> list[str]:
    """What verdicts are about: acc1, recall@k of both directions at the largest k that tells something, nDCG@10."""
    if result.task == CLASSIFICATION:
        return ["acc1"] if "acc1" in result.metrics else []
    if result.task == RETRIEVAL:
        name = judged(result.size.get("pairs"))
        return [m for m in (f"i2t_{name}", f"t2i_{name}") if m in result.metrics] if name else []
    return ["ndcg@10"] if result.task == "queries" and "ndcg@10" in result.metrics else []


def _gaps(a: ModelResults, rivals: Sequence[ModelResults]) -> tuple[list[Gap], list[str]]:
    """The paired differences, and a sentence for each that cannot be made because values of single items are not there."""
    gaps, missing = [], []
    for b in rivals:
        theirs = {(r.dataset, r.task): r for r in b.results}
        for ours in a.results:
            other = theirs.get((ours.dataset, ours.task))
            if other is None or _unlike(ours, other):
                continue
            left, right = _items(a, ours), _items(b, other)
            for metric in main_metrics(ours):
                if metric not in left or metric not in right or left[metric][0].shape != right[metric][0].shape:
                    missing.append(
                        f"{a.label} and {b.label} could not be compared in {metric} of {ours.dataset}: per-item values are missing. "
                        "Make them again with clipling eval."
                    )
                    continue
                apart = left[metric][0] - right[metric][0]
                low, high = interval(apart, left[metric][1])
                gaps.append(Gap(ours.dataset, ours.task, metric, a.label, b.label, float(apart.mean()), low, high, len(apart)))
    return gaps, missing


def _items(model: ModelResults, result: Result) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    place = model.places.get((result.dataset, result.task))
    return read_items(place, result) if place is not None else {}


def _unlike(a: Result, b: Result) -> str:
    """What keeps two results from being compared, for a sentence; empty when nothing does."""
    reads = "queries" if a.task == "queries" else "templates or files beside the data"
    differ = {
        "other data": a.data_hash != b.data_hash,
        "other settings": a.settings != b.settings,
        "other prompts": a.prompts != b.prompts,
        f"other {reads}": a.made.get("inputs") != b.made.get("inputs"),
    }
    return " and ".join(what for what, is_so in differ.items() if is_so)


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


def _uncompared(ours: ModelResults, rivals: Sequence[ModelResults]) -> list[str]:
    """Results of other models on other data, or by other settings, are shown and not compared."""
    mine = {(r.dataset, r.task): r for r in ours.results if main_metrics(r)}
    pairs = [(model, r, mine[r.dataset, r.task]) for model in rivals for r in model.results if (r.dataset, r.task) in mine]
    return [
        f"{model.label} on {r.dataset} ({r.task}) was measured with {why}: not compared."
        for model, r, own in pairs
        if (why := _unlike(own, r))
    ]


def _ownerless(models: Sequence[ModelResults]) -> list[str]:
    return [
        f"The results of {m.label} do not say which model's start it is: not compared. Make them again with clipling eval."
        for m in models
        if m.role == "untrained" and not m.start_of
    ]


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
