"""Tables of a suite's page: metrics by model, confusions, corruptions, backgrounds."""

from __future__ import annotations

from collections.abc import Sequence

from clipling.evals.results import Result
from clipling.evals.suite.blocks import Cell, Table
from clipling.evals.suite.compared import ModelResults
from clipling.evals.suite.figures import severities
from clipling.evals.suite.levels import level
from clipling.evals.suite.wording import Direction, direction, is_fraction, metric_name, value

Of = Sequence[tuple[ModelResults, Result]]
NBSP = "\u00a0"  # units and arrows never stand alone on a line
ARROWS = {"up": f"{NBSP}↑", "down": f"{NBSP}↓", "none": ""}
ROLES = {"untrained": "untrained", "ready": "ready-made"}
LEFT = "left break"
CHANCE = "chance"


def numbers(of: Of, metrics: Sequence[str], title: str = "") -> Table:
    """Metrics in rows, models in columns; metrics that no result has are left out."""
    metrics = [name for name in metrics if any(name in result.metrics for _, result in of)]
    results = [result for _, result in of]
    guessed = {name: chance_cell(results, name) for name in metrics}
    known = any(guessed.values())
    rows = [
        [Cell(heading(of[0][1].task, name), look="metric"), *([guessed[name]] if known else []), *(number_cell(r, name) for _, r in of)]
        for name in metrics
    ]
    return Table(["", *([CHANCE] if known else []), *(model_head(m) for m, _ in of)], rows, title)


def chance_cell(results: Sequence[Result], name: str) -> str:
    """What guessing reaches in a metric on the dataset of `results`; empty where that is not known."""
    found = level(results[0].task, name, results[0].size)
    return "" if found is None else value(name, found)


def model_head(model: ModelResults) -> Cell:
    return Cell(model.label, look="head", colour=model.colour)


def heading(task: str, name: str) -> str:
    unit = f",{NBSP}%" if is_fraction(name) else ""
    return f"{metric_name(name)}{unit}{ARROWS[direction(task, name)]}"


def model_cell(model: ModelResults) -> Cell:
    return Cell(model.label, ROLES.get(model.role, ""), "name", colour=model.colour)


def number_cell(result: Result, name: str, look: str = "") -> Cell:
    """A value with its 95 % interval below it."""
    if name not in result.metrics:
        return Cell("–")
    ends, small = interval_of(result, name), ""
    if ends is not None:
        low, high = (value(name, end) for end in ends)
        small = f"{low}–{high}" if ends[0] >= 0 else f"{low} to {high}"
    return Cell(value(name, result.metrics[name]), small, look)


def interval_of(result: Result, name: str) -> tuple[float, float] | None:
    """That of a metric which is a mean over items, or the one that its evaluator made itself."""
    low, high = result.intervals.get(name) or result.details.get(f"{name}_interval") or (None, None)
    return None if low is None or high is None else (float(low), float(high))


def best_of(found: Sequence[Result | None], name: str, which: Direction) -> int | None:
    """The place of the best, if its interval overlaps with no other's."""
    known = {i: r for i, r in enumerate(found) if r is not None and name in r.metrics}
    ends = {i: interval_of(r, name) for i, r in known.items()}
    if len(known) < 2 or which == "none" or any(e is None for e in ends.values()):
        return None
    sign = -1 if which == "down" else 1
    best = max(known, key=lambda i: sign * known[i].metrics[name])
    low, high = ends[best]  # type: ignore[misc]
    clear = all((low > e[1]) if sign > 0 else (high < e[0]) for i, e in ends.items() if i != best and e is not None)
    return best if clear else None


def confusions(model: ModelResults, result: Result) -> Table | None:
    rows = [
        [
            Cell(e["true"], look=LEFT),
            Cell(e["predicted"], look=LEFT),
            f"{e['count']:,}",
            Cell(f"{100 * e['share']:.0f} %", heat=e["share"], colour=model.colour),
        ]
        for e in result.details.get("confusions", [])
    ]
    note = "Share of the pictures of the true class that went to the other one."
    head = [Cell("true class", look="left"), Cell("taken for", look="left"), "pictures", "share"]
    return Table(head, rows, f"What {model.label} mixes up most", note) if rows else None


def heat(model: ModelResults, result: Result) -> Table | None:
    """Corruptions in rows, those of a family together; severities in columns."""
    curves, families = result.details.get("curves", {}), result.details.get("families", {})
    order = sorted(curves, key=lambda name: list(families.values()).index(families[name]) if name in families else len(families))
    top = max((v for curve in curves.values() for v in curve), default=0) or 1
    rows = []
    for name in order:
        values = [*curves[name], sum(curves[name]) / len(curves[name])]
        hot = [Cell(f"{100 * v:.1f}", heat=v / top, colour=model.colour) for v in values]
        rows.append([Cell(name.replace("_", " "), families.get(name, ""), "name inline"), *hot])
    head = ["corruption", *map(str, severities([(model, result)])), "mean"]
    return Table(head, rows, f"Every corruption, {model.label}", "Percent by severity; the more colour, the better.") if rows else None


def outside(of: Of) -> Table:
    """A row a metric and foreign set."""
    tables = [{each["name"]: each for each in r.details.get("sets", [])} for _, r in of]
    keys = [k for k in ("auroc", "fpr95", "auroc_logit", "fpr95_logit", "auroc_mcm", "fpr95_mcm") if k in of[0][1].metrics]
    rows = []
    for name, each in tables[0].items():
        for key in keys:
            found = [value(key, table[name][key]) if key in table.get(name, {}) else "–" for table in tables]
            rows.append([Cell(heading("outside", key), f"{name}, {each['pictures']:,} pictures", "metric"), *found])
    return Table(["", *(model_head(m) for m, _ in of)], rows) if rows else numbers(of, keys)


def backgrounds(result: Result) -> list[Table]:
    """Which backgrounds were found to be the common and the rare one of every class; and accuracy before each, whatever the class."""
    rows = []
    for found in result.details.get("classes", []):
        sides = [
            Cell(value("acc1", found[side]), f"{found[f'{side}_group']}, {found[f'{side}_count']:,}") for side in ("common", "counter")
        ]
        rows.append([Cell(found["name"], look=LEFT), *sides])
    made = []
    if rows:
        note = "Accuracy, percent; below it the background and how many pictures were scored."
        made.append(Table([Cell("class", look="left"), "common", "rare"], rows, "", note))
    groups = result.details.get("groups", [])
    rows = [[Cell(g["group"] or "none", look=LEFT), value("acc1", g["accuracy"]), f"{g['count']:,}"] for g in groups]
    if rows:
        made.append(Table([Cell("background", look="left"), "accuracy, %", "pictures"], rows))
    return made
