"""The plots of a report, chosen and drawn from what runs logged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipling.evals.measure import parts, with_means
from clipling.evals.plots import COLOURS, Line, Whisker, curves, mean_line, smooth, whiskers
from clipling.evals.runs import Arm, Run
from clipling.evals.verdict import Row

Event = Mapping[str, Any]
Series = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Chart:
    """An SVG with its heading and a line that says how to read it."""

    title: str
    note: str
    svg: str
    legend: tuple[tuple[str, int], ...] = ()
    """(label, colour number) where a chart has lines of its own."""


def all_charts(arms: Sequence[Arm], featured: Arm | None, mean: str) -> list[Chart]:
    """Validation (`mean`: a recall@k) by samples and by time, the loss all arms share, what the terms of the featured arm did."""
    found = [_validation(arms, part, title) for part, title in zip(parts(mean), ("Image to text", "Text to image"))]
    found += [_by_time(arms, mean), _shared_loss(arms)]
    if featured is not None:
        found += _of_terms(featured.runs[0], featured.label)
    return [chart for chart in found if chart is not None]


def difference_chart(rows: Sequence[Row], mean: str) -> str:
    """The recall@k `mean` of every arm minus the baseline's; empty without differences."""
    found = []
    for row in rows:
        if row.difference is None:
            continue
        apart = row.difference[mean]
        low, high = (None if end is None else 100 * end for end in (apart.low, apart.high))
        seeds = [100 * v for v in apart.seeds.values]
        found.append(Whisker(row.arm.label, 100 * apart.seeds.mean, low, high, seeds, row.arm.colour))
    if not found:
        return ""
    return whiskers(found, name=f"Difference in {mean} from the baseline", x=f"points of {mean}, both directions")


def _series(events: Sequence[Event], x: Callable[[Event], Any], y: Callable[[Event], Any]) -> Series:
    """The points of a log where both values are there."""
    points = [(x(e), y(e)) for e in events]
    kept = [(float(a), float(b)) for a, b in points if a is not None and b is not None]
    return [a for a, _ in kept], [b for _, b in kept]


def _over_seeds(arms: Sequence[Arm], of: Callable[[Run], Series], average: bool = True) -> list[Line]:
    """A line an arm; with several seeds, thin lines of the seeds under their mean."""
    lines = []
    for arm in arms:
        each = [series for series in map(of, arm.runs) if series[0]]
        several = len(each) > 1 and average
        lines += [Line(x, y, arm.colour, thin=several) for x, y in each]
        if several:
            lines.append(Line(*mean_line(each), arm.colour))
    return lines


def _validation(arms: Sequence[Arm], metric: str, title: str) -> Chart | None:
    def of(run: Run) -> Series:
        return _series(run.val, lambda e: e.get("samples_seen"), lambda e: _percent(e["metrics"].get(metric)))

    lines = _over_seeds(arms, of)
    if not lines:
        return None
    recall = metric.partition("_")[2]
    note = f"{recall.capitalize()} on val, percent, by samples seen."
    return Chart(title, note, curves(lines, name=f"{title}: {recall} on val by samples seen", x="samples seen"))


def _by_time(arms: Sequence[Arm], mean: str) -> Chart | None:
    longest = max((run.summary["seconds"] for arm in arms for run in arm.runs), default=0)
    unit, words = (60.0, "minutes of training") if longest > 180 else (1.0, "seconds of training")

    def of(run: Run) -> Series:
        def seconds(event: Event) -> float | None:
            return None if event.get("seconds") is None else event["seconds"] / unit

        return _series(run.val, seconds, lambda e: _percent(with_means(e["metrics"]).get(mean)))

    lines = _over_seeds(arms, of, average=False)
    if not lines:
        return None
    note = f"Mean {mean} of both directions on val, percent, by time on the clock; one line a seed."
    return Chart("The same by time", note, curves(lines, name=f"Mean {mean} on val by time", x=words))


def _shared_loss(arms: Sequence[Arm]) -> Chart | None:
    """Totals of different objectives cannot be compared; a term that all arms have can."""
    sets = [set(e.get("terms", {})) for arm in arms for run in arm.runs for e in run.train[-1:]]
    shared = sorted(set.intersection(*sets)) if sets else []
    if not shared:
        return None
    term = shared[0]

    def of(run: Run) -> Series:
        x, y = _series(run.train, lambda e: e.get("samples_seen"), lambda e: e["terms"].get(term))
        return x, smooth(y, max(1, len(y) // 40))

    note = f"The term “{term}” that all runs share, nats, a running mean; lower is not always better on val."
    svg = curves(_over_seeds(arms, of), name=f"Training loss: the term {term}", x="samples seen")
    return Chart("Training loss", note, svg)


def _of_terms(run: Run, label: str) -> list[Chart]:
    """For an arm with more than one term: their values, and the cosine of their gradients to that of CLIP."""
    names = sorted({name for e in run.train for name in e.get("terms", {})})
    if len(names) < 2:
        return []
    charts = []
    seen = f"seed {run.seed}"
    for title, note, value in (
        (f"Terms of {label}", f"Every term of the objective, unweighted, a running mean ({seen}).", _term),
        (
            f"Gradients of {label}",
            f"Cosine of each term's gradient to the CLIP gradient at the embeddings ({seen}): above 0 they pull together.",
            _cosine,
        ),
    ):
        lines, legend = [], []
        for number, name in enumerate(names):
            x, y = _series(run.train, lambda e: e.get("samples_seen"), lambda e, n=name, v=value: v(e, n))
            if value is _cosine and min(y, default=0) > 0.9999:
                continue  # the reference itself
            if x:
                # From the far end of the palette: these are not the colours of the arms.
                lines.append(Line(x, smooth(y, max(1, len(y) // 40)), COLOURS - 1 - number))
                legend.append((name, (COLOURS - 1 - number) % COLOURS))
        if lines:
            svg = curves(lines, name=title, x="samples seen", zero=value is _cosine)
            charts.append(Chart(title, note, svg, tuple(legend)))
    return charts


def _term(event: Event, name: str) -> float | None:
    return event.get("terms", {}).get(name)


def _cosine(event: Event, name: str) -> float | None:
    return event.get("gradient", {}).get(name, {}).get("cosine")


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
