"""The plots of a suite's page, chosen and drawn from results. Each takes (model, result) pairs of one task on one dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clipling.evals.plots import Whisker
from clipling.evals.results import CLASSIFICATION, RETRIEVAL, Result
from clipling.evals.suite.blocks import Figure
from clipling.evals.suite.compared import Gap, ModelResults
from clipling.evals.suite.drawings import Series, Spot, bars, differences, dots, scatter, short, trend
from clipling.evals.suite.wording import is_fraction, metric_name

Of = tuple[ModelResults, Result]
MOST_CLASSES = 40
SEVERITIES = (1, 2, 3, 4, 5)


def gap_figures(gaps: Sequence[Gap], models: Sequence[ModelResults]) -> list[Figure]:
    """A figure a dataset: the difference to each other model in every metric, with its interval."""
    colours = {model.label: model.colour for model in models}
    made = []
    for dataset in dict.fromkeys(gap.dataset for gap in gaps):
        found = [gap for gap in gaps if gap.dataset == dataset and is_fraction(gap.metric)]
        others = list(dict.fromkeys(gap.b for gap in found))
        # A metric's rows stand together, whatever the order of the gaps.
        order = list(dict.fromkeys((gap.task, gap.metric) for gap in found))
        found.sort(key=lambda gap: (order.index((gap.task, gap.metric)), others.index(gap.b)))
        rows = [Whisker(metric_name(g.metric), 100 * g.mean, 100 * g.low, 100 * g.high, [], colours.get(g.b, 0)) for g in found]
        if rows:
            svg = differences(rows, name=f"{dataset}: differences", x=f"points, {short(found[0].a)} minus the other")
            legend = tuple((f"against {b}", colours.get(b, 0), "full") for b in others)
            made.append(Figure(short(dataset, 60), f"Over {_counts(found)}.", svg, legend))
    return made


def class_figure(of: Sequence[Of]) -> Figure | None:
    """Accuracy of every class; of many, those where the first model is worst and best."""
    tables = [named(result, "classes") for _, result in of]
    order = sorted(tables[0], key=lambda name: (tables[0][name]["accuracy"], name))
    if not order:
        return None
    half, note = MOST_CLASSES // 2, f"Percent of the pictures of each class; sorted by {of[0][0].label}."
    if len(order) > MOST_CLASSES:
        note += f" Of {len(order)} classes, the {half} worst and the {half} best."
        order = [*order[:half], *order[-half:]]
    series = [dots_of(m, [percent(t.get(name, {}).get("accuracy")) for name in order]) for (m, _), t in zip(of, tables)]
    return Figure("Accuracy by class", note, dots(order, series, name=description(of, "accuracy by class"), x="top-1 accuracy, percent"))


def severities(of: Sequence[Of]) -> list[int]:
    """Those that were measured of any model, in rising order."""
    return sorted({int(s) for _, result in of for s in result.details.get("severities", SEVERITIES)})


def kind_figure(of: Sequence[Of]) -> Figure | None:
    """Hard negatives by kind, with chance, and what a model without eyes would reach where that was measured."""
    tables = [named(result, "kinds", "kind") for _, result in of]
    kinds = list(tables[0])
    if not kinds:
        return None
    blind = [percent(tables[0][kind].get("blind")) for kind in kinds]
    series = [dots_of(m, [percent(t.get(kind, {}).get("accuracy")) for kind in kinds]) for (m, _), t in zip(of, tables)]
    labels = [f"{kind.replace('_', ' ')} ({tables[0][kind]['count']:,})" for kind in kinds]
    marks = Series(blind, -1) if any(b is not None for b in blind) else None
    svg = bars(labels, series, name=description(of, "hard negatives"), x="true caption preferred, percent", line=50, marks=marks)
    note = "Percent, number of captions in brackets; dashed: chance." + (
        " Thick tick: a baseline that does not see the picture." if marks else ""
    )
    return Figure("By kind of change", note, svg)


def spectrum_figures(of: Sequence[Of]) -> list[Figure]:
    made = []
    for modality, title in (("image", "Spectrum of pictures"), ("text", "Spectrum of texts")):
        columns = [result.details.get(f"spectrum_{modality}", []) for _, result in of]
        longest = max(map(len, columns))
        if longest > 1:
            series = [Series([*(_positive(v) for v in c), *[None] * (longest - len(c))], m.colour) for (m, _), c in zip(of, columns)]
            svg = trend(range(1, longest + 1), series, name=description(of, title), x="singular value", log="y", ticks=False)
            made.append(Figure(title, "Normalised singular values, largest first: a steep fall means few dimensions are used.", svg))
    return made


def slice_figure(of: Sequence[Of]) -> Figure | None:
    tables = [named(result, "slices", "slice") for _, result in of]
    order = list(tables[0])
    if not order:
        return None
    series = [dots_of(m, [percent(t.get(name, {}).get("ndcg@10")) for name in order]) for (m, _), t in zip(of, tables)]
    labels = [f"{name.replace('_', ' ')} ({tables[0][name]['queries']:,})" for name in order]
    svg = dots(labels, series, name=description(of, "queries by slice"), x="nDCG@10, percent")
    return Figure("By slice", "nDCG@10, percent; number of queries in brackets.", svg)


def tried_figure(of: Sequence[Of], setting: str, words: str) -> Figure | None:
    """Accuracy by a setting that was chosen on held-out training pictures."""
    tables = [{e[setting]: e["acc1"] for e in result.details.get("tried", [])} for _, result in of]
    at = sorted({key for table in tables for key in table})
    if len(at) < 2:
        return None
    series = [dots_of(m, [percent(t.get(a)) for a in at]) for (m, _), t in zip(of, tables)]
    svg = trend(at, series, name=description(of, f"tried {setting}"), x=words, zero=False, log="x", ticks=len(at) < 12)
    return Figure("What was tried", "Top-1 accuracy on held-out training pictures, percent.", svg)


def described_figure(of: Sequence[Of]) -> Figure | None:
    """Classes of the first model by name and by description, widest gain and loss."""
    model, result = of[0]
    known = sorted(result.details.get("classes", []), key=lambda c: (c["by_name"] - c["accuracy"], c["name"]))
    if not known:
        return None
    half = MOST_CLASSES // 2
    known = [*known[:half], *known[-half:]] if len(known) > MOST_CLASSES else known
    series = [
        Series([percent(c["accuracy"]) for c in known], model.colour),
        Series([percent(c["by_name"]) for c in known], model.colour, "hollow"),
    ]
    svg = dots([c["name"] for c in known], series, name=description([of[0]], "descriptions"), x="accuracy, percent", joined=True)
    legend = (("by description", model.colour, "full"), ("by name", model.colour, "hollow"))
    return Figure("By class", f"Of {model.label}, percent; largest gain first.", svg, legend)


def quality(results: Sequence[Result]) -> tuple[float, str] | None:
    """(mean headline metric, its name) of a model on one dataset: top-1 accuracy, or recall@10 of both directions."""
    for task, names in ((CLASSIFICATION, ("acc1",)), (RETRIEVAL, ("i2t_recall@10", "t2i_recall@10"))):
        for result in results:
            if result.task == task and all(name in result.metrics for name in names):
                words = metric_name(names[0]) if len(names) == 1 else "recall@10, mean of both directions"
                return sum(result.metrics[name] for name in names) / len(names), words
    return None


def cost_figures(dataset: str, models: Sequence[ModelResults], cost: Callable[[ModelResults], Mapping[str, float]]) -> list[Figure]:
    """Quality on `dataset` against what a model costs to run; models without both are left out."""
    made = []
    for metric, title, x in (("image_ms", "By time", "ms a picture"), ("parameters", "By size", "parameters, millions")):
        spots, words = [], ""
        for model in models:
            found, price = quality([r for r in model.results if r.dataset == dataset]), cost(model).get(metric)
            if found is not None and price is not None:
                words = found[1]
                spots.append(Spot(model.label, price / 1e6 if metric == "parameters" else price, 100 * found[0], model.colour))
        if len(spots) > 1:
            svg = scatter(spots, name=f"{dataset}: {words} by {x}", x=x)
            made.append(Figure(f"{title}, {short(dataset, 40)}", f"{words[0].upper()}{words[1:]}, percent; left and high is good.", svg))
    return made


def dots_of(model: ModelResults, values: Sequence[float | None]) -> Series:
    return Series(values, model.colour, "hollow" if model.role == "untrained" else "full")


def named(result: Result, table: str, key: str = "name") -> dict[str, Any]:
    """Entries of a table of the details by their names; a name that comes again (classes may share one) gets a number."""
    found: dict[str, Any] = {}
    for entry in result.details.get(table, []):
        name, count = str(entry[key]), 2
        while name in found:
            name, count = f"{entry[key]} ({count})", count + 1
        found[name] = entry
    return found


def description(of: Sequence[Of], what: str) -> str:
    """The description of a plot, different from that of any other on the page."""
    model = f", {of[0][0].label}" if len(of) == 1 else ""
    return f"{of[0][1].dataset}{model}, {of[0][1].task.replace('_', ' ')}: {what}"


def _counts(gaps: Sequence[Gap]) -> str:
    counts = sorted({gap.items for gap in gaps})
    return f"{counts[0]:,} items" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} items"


def _positive(value: float | None) -> float | None:
    return value if value is not None and value > 0 else None


def percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction
