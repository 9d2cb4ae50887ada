"""The report: one HTML file that holds everything it shows, and loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import clipling
from clipling.evals.chance import chance, remark, shown
from clipling.evals.charts import all_charts, difference_chart
from clipling.evals.gallery import SHOWN, Exhibit, Thumbnails, image_gallery, neighbour_examples, text_gallery
from clipling.evals.measure import METRICS, with_means
from clipling.evals.plots import colour
from clipling.evals.results import CLASSIFICATION, Result, weights_hash
from clipling.evals.runs import Arm, Run
from clipling.evals.verdict import Row, Verdict, best_guided, millions, percent, signed
from clipling.store import atomic_write


@dataclass(frozen=True)
class Sources:
    """The pairs behind a report: those that students were measured on, and the training source. None: not to be had."""

    measured: Any | None
    split: str  # "val" or "test": what `measured` is
    pairs: Any | None
    pictures: bool
    count: int | None = None  # pairs behind the numbers, where known
    val_count: int | None = None  # the fewest val pairs of a run


def write_report(
    path: Path,
    rows: Sequence[Row],
    verdict: Verdict,
    references: Sequence[Result],
    sources: Sources,
    exhibits: Sequence[Exhibit],
    credits: str = "",
) -> None:
    """Renders the report and writes it atomically to `path`."""
    arms = [row.arm for row in rows]
    base = next((row for row in rows if row.difference is None and len(rows) > 1), None)
    metric = shown(sources.count)
    val_metric = shown(sources.val_count)
    best = best_guided(rows, metric)
    featured = best.arm if best is not None else None
    data = _data_name(rows, sources)
    context = {
        "verdict": verdict,
        "rows": rows,
        "baseline": base if any(row.difference for row in rows) else None,
        "metrics": METRICS,
        "primary": metric,
        "val_metric": val_metric,
        "chance": {name: chance(name, sources.count) for name in METRICS},
        "remark": remark(METRICS, sources.count, sources.split),
        "references": [(r, with_means(r.metrics)) for r in references],
        "data": data,
        "data_short": "/".join(data.replace("\\", "/").split("/")[-2:]),
        "sources": sources,
        "starts": [start for arm in arms if (start := _start(arm, val_metric)) is not None],
        "difference_plot": Markup(difference_chart(rows, metric)),
        "charts": [(chart, Markup(chart.svg)) for chart in all_charts(arms, featured, val_metric)],
        "guided": _guided(arms, featured, sources),
        "galleries": _galleries(sources, exhibits),
        "guessed": _guessed(sources.count),
        "zero_shot": [(run, r) for arm in arms for run in arm.runs for r in run.results if r.task == CLASSIFICATION],
        "origins": [_origin(arm, run) for arm in arms for run in arm.runs],
        "version": clipling.__version__,
        "credits": credits.strip().splitlines(),
    }
    atomic_write(path, environment().get_template("report.html").render(context))


def environment() -> jinja2.Environment:
    """Templates with escaping on, whatever their names: captions are other people's text."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("clipling.evals", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(percent=percent, signed=signed, millions=millions, clock=clock, colour=colour, number=lambda n: f"{n:,}")
    return made


def clock(seconds: float) -> str:
    """70 as `1 min 10 s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _data_name(rows: Sequence[Row], sources: Sources) -> str:
    if sources.measured is not None:
        return str(sources.measured.name)
    run = rows[0].arm.runs[0]
    return str((run.recipe.get("data") or {}).get("source") or run.summary.get("data", ""))


def _start(arm: Arm, metric: str) -> dict[str, Any] | None:
    """The untrained and the trained student of an arm on the val of its runs, means over seeds; None where not logged."""
    starts = [with_means(run.summary.get("untrained") or {}).get(metric) for run in arm.runs]
    ends = [with_means(run.summary["val"]).get(metric) for run in arm.runs]
    known = [(a, b) for a, b in zip(starts, ends) if a is not None and b is not None]
    if not known:
        return None
    start, end = (sum(column) / len(known) for column in zip(*known))
    return {"arm": arm, "start": start, "end": end, "least": min(b - a for a, b in known)}


def _guided(arms: Sequence[Arm], featured: Arm | None, sources: Sources) -> dict[str, Any] | None:
    """The neighbours of the featured arm, or of the first whose run kept a sample of them."""
    for arm in sorted(arms, key=lambda a: a is not featured):
        for run in arm.runs:
            if run.guides.get("neighbours_sample"):
                thumbnails = Thumbnails(sources.pairs, sources.pictures and sources.pairs is not None)
                examples = neighbour_examples(run.guides, sources.pairs, thumbnails)
                return {"arm": arm, "examples": examples, "hubness": hubness_lines(run.guides.get("hubness"))}
    return None


def hubness_lines(hubness: Any) -> list[str]:
    """One sentence a feature space about how evenly neighbours are spread (see clipling.guides.hubness)."""
    lines = []
    for space, found in (hubness or {}).items():
        if {"largest", "mean", "never"} <= set(found):
            lines.append(
                f"In the {space} space one pair is a neighbour of {found['largest']:,} others ({found['mean']:.1f} on average); "
                f"{percent(found['never'])} are nobody's neighbour."
            )
    return lines


def _guessed(pairs: int | None) -> str:
    """How often five answers hold a right one by guessing."""
    level = chance(f"recall@{SHOWN}", pairs)
    return "" if level is None else f", which guessing has for {percent(level)} of queries"


def _galleries(sources: Sources, exhibits: Sequence[Exhibit]) -> dict[str, Any] | None:
    if not exhibits or sources.measured is None:
        return None
    thumbnails = Thumbnails(sources.measured, sources.pictures)
    return {
        "text": text_gallery(sources.measured, exhibits, thumbnails),
        "image": image_gallery(sources.measured, exhibits, thumbnails),
    }


def _origin(arm: Arm, run: Run) -> dict[str, Any]:
    """What it takes to make a run again."""
    recipe = run.folder / "recipe.yaml"
    return {
        "label": arm.label,
        "colour": arm.colour,
        "seed": run.seed,
        "folder": run.folder.name,
        "steps": run.summary.get("steps"),
        "best_step": run.summary.get("best_step"),
        "weights": weights_hash(run.model)[:16] if run.model else "",
        "recipe": recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
        "environment": flat(run.environment),
    }


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested dicts and lists as (dotted key, text) rows, in their order."""
    if value is None or value == "" or value == {} or value == []:
        return []
    if isinstance(value, dict):
        return [row for key, below in value.items() for row in flat(below, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list | tuple) and all(isinstance(v, str | int | float) for v in value):
        return [(prefix, " ".join(map(str, value)))]
    if isinstance(value, list | tuple):
        return [row for i, below in enumerate(value) for row in flat(below, f"{prefix}.{i}")]
    return [(prefix, f"{value:.4g}" if isinstance(value, float) else str(value))]
