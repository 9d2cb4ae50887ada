"""The page of a suite: one HTML file for one model or several, which holds everything it shows and loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import clipling
from clipling.evals.report import clock, environment
from clipling.evals.suite.blocks import Cell, Grid, Remark, Section, Table
from clipling.evals.suite.compared import Comparison, Gap, ModelResults
from clipling.evals.suite.figures import cost_figures, gap_figures
from clipling.evals.suite.languages import by_language
from clipling.evals.suite.origins import origins
from clipling.evals.suite.pictures import Pictures
from clipling.evals.suite.sections import remarks, sections
from clipling.evals.suite.tables import CHANCE, best_of, chance_cell, heading, model_cell, model_head, number_cell, numbers
from clipling.evals.suite.wording import SECTIONS, direction, headline, is_fraction, value
from clipling.evals.verdict import signed
from clipling.store import atomic_write

MOST_HEADLINES = 2  # metrics a task in the first table; retrieval has two directions
LONG = 160  # letters that a heading may have
NO_HEADLINE = frozenset({"geometry", "cost"})  # one describes, the other has a section over all datasets
COSTS = ("parameters", "parameters_without_token_rows", "image_gflops", "text_gflops", "image_ms", "text_ms", "file_mb")


def write_page(path: Path | str, models: Sequence[ModelResults], comparison: Comparison, pictures: bool = True, credits: str = "") -> None:
    """Writes the page to `path`, atomically.

    models: in the order in which they are shown; the first one is what the page is about. Their labels must differ.
    pictures: whether galleries show pictures; they are opened from the sources that results name. credits: lines for the foot.
    """
    labels = [model.label for model in models]
    if len(set(labels)) < len(labels) or not labels:
        raise ValueError(f"models need labels that differ, at least one: {labels}")
    datasets = list(dict.fromkeys(r.dataset for m in models for r in m.results))
    context = {
        "verdict": comparison,
        "opening": _opening(comparison.text),
        "long": LONG,
        "models": models,
        "overview": _overview(models),
        "headlines": [_headlines(f"dataset-{n}", dataset, models) for n, dataset in enumerate(datasets, 1)],
        "gaps": _gaps(comparison.gaps, models),
        "chapters": [_chapter(number, dataset, models, pictures) for number, dataset in enumerate(datasets, 1)],
        "languages": by_language(models),
        "cost": _cost(datasets, models),
        "origins": origins(models),
        "version": clipling.__version__,
        "credits": credits.strip().splitlines(),
    }
    html = environment().get_template("suite.html").render(context)
    # A class name with half a surrogate pair must not cost the page.
    atomic_write(Path(path), html.encode("utf-8", "replace"))


def _opening(text: str) -> tuple[str, str]:
    """The first sentence and the rest: a heading of many sentences cannot be read."""
    if len(text) <= LONG:
        return text, ""
    first, _, rest = text.partition(". ")
    return (f"{first}.", rest) if rest else (text, "")


def _overview(models: Sequence[ModelResults]) -> Table:
    """Who is compared, and what each of them cost."""
    rows = []
    for model in models:
        budget = next((r.budget for r in model.results if r.budget), {})
        weights = next((r.model_hash for r in model.results if r.model_hash), "")
        rows.append(
            [
                model_cell(model),
                value("parameters", budget["parameters"]) if "parameters" in budget else "–",
                f"{budget['samples_seen']:,.0f}" if budget.get("samples_seen") is not None else "–",
                clock(budget["seconds"]) if budget.get("seconds") is not None else "–",
                Cell(weights[:12] or "–", look="code"),
            ]
        )
    return Table(["model", "parameters with token rows", "samples seen", "training", "model, SHA-256"], rows)


def _headlines(prefix: str, dataset: str, models: Sequence[ModelResults]) -> Table:
    """Metrics in rows, models in columns: one column a model stays readable however many tasks were run."""
    tables = [{r.task: r for r in m.results if r.dataset == dataset} for m in models]
    tasks = list(dict.fromkeys(task for table in tables for task in table))
    rows = []
    for task in sorted(set(tasks) - NO_HEADLINE, key=lambda t: list(SECTIONS).index(t) if t in SECTIONS else len(SECTIONS)):
        found = [table.get(task) for table in tables]
        names = list(dict.fromkeys(name for result in found if result is not None for name in headline(result)))
        names = [name for name in names if name != "clean"]  # a smaller sample of what stands above it
        title = SECTIONS.get(task, (task,))[0]
        for name in names[: 2 * MOST_HEADLINES if task == "zeroshot_retrieval" else MOST_HEADLINES]:
            best = best_of(found, name, direction(task, name))
            cells = [Cell("–") if r is None else number_cell(r, name, "best" if i == best else "") for i, r in enumerate(found)]
            guessed = chance_cell([r for r in found if r is not None], name)
            rows.append([Cell(heading(task, name), title, "metric", link=f"{prefix}-{task}"), guessed, *cells])
            title = ""  # once a task
    head = ["", CHANCE, *map(model_head, models)]
    return Table(head, rows, dataset, _size(dataset, models))


def _gaps(gaps: Sequence[Gap], models: Sequence[ModelResults]) -> dict[str, Any] | None:
    if not gaps:
        return None
    rows = []
    for gap in gaps:
        names = [Cell(text, look="left break") for text in (gap.dataset, heading(gap.task, gap.metric), gap.b)]
        ends = f"{_apart(gap, gap.low)} to {_apart(gap, gap.high)}"
        rows.append([*names, Cell(_apart(gap, gap.mean), look=_reading(gap)), ends, f"{gap.items:,}"])
    left = [Cell(text, look="left") for text in ("dataset", "metric", "against")]
    figures = gap_figures(gaps, models)
    return {
        "first": gaps[0].a,
        "plots": Grid(figures) if figures else None,
        "table": Table([*left, "difference", "95 % interval", "items"], rows),
    }


def _apart(gap: Gap, difference: float) -> str:
    return signed(difference) if is_fraction(gap.metric) else f"{difference:+.3g}".replace("-", "−")


def _reading(gap: Gap) -> str:
    """The class of a difference: coloured where its interval leaves out 0."""
    sign = -1 if direction(gap.task, gap.metric) == "down" else 1
    low, high = sorted((sign * gap.low, sign * gap.high))
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def _chapter(number: int, dataset: str, models: Sequence[ModelResults], wanted: bool) -> dict[str, Any]:
    results = [r for m in models for r in m.results if r.dataset == dataset]
    pictures = Pictures(results, wanted)
    return {
        "id": f"dataset-{number}",
        "name": dataset,
        "size": _size(dataset, models),
        "note": pictures.note,
        "sections": sections(dataset, models, pictures, f"dataset-{number}"),
    }


def _size(dataset: str, models: Sequence[ModelResults]) -> str:
    """`600 pictures of 10 classes; 3 rows could not be used`, from the first result that says so."""
    for result in (r for m in models for r in m.results if r.dataset == dataset):
        size: Mapping[str, int] = result.size
        bad = f"; {size['bad_rows']:,} rows could not be used" if size.get("bad_rows") else ""
        if {"images", "classes"} <= set(size):
            return f"{size['images']:,} pictures of {size['classes']:,} classes{bad}"
        if {"pairs", "captions"} <= set(size):
            return f"{size['pairs']:,} pictures with {size['captions']:,} captions{bad}"
    return ""


def _cost(datasets: Sequence[str], models: Sequence[ModelResults]) -> Section | None:
    """What each model costs to run, and its quality on every dataset against that. Of several measurements of a model the first counts."""
    of = [(m, r) for m in models for r in m.results if r.task == "cost"]
    first = {m.label: r for m, r in reversed(of)}
    # Parameters are known without a measurement.
    known = {
        m.label: {**next((r.budget for r in m.results if r.budget), {}), **(first[m.label].metrics if m.label in first else {})}
        for m in models
    }
    plots = [figure for dataset in datasets for figure in cost_figures(dataset, models, lambda m: known[m.label])]
    blocks: list[Any] = [Grid(plots)] if plots else []
    measured = [(m, first[m.label]) for m in models if m.label in first]
    if measured:
        blocks.append(numbers(measured, COSTS))
    if not blocks:
        return None
    said: list[Remark] = remarks(measured)
    return Section("cost", "Cost against quality", SECTIONS["cost"][1] if measured else "Left and high is good.", blocks, said)
