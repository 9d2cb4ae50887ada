"""Plots on how far a model can be trusted: calibration, prompts, backgrounds, foreign and damaged pictures, attacks."""

from __future__ import annotations

from collections.abc import Sequence

from clipling.evals.suite.blocks import Figure
from clipling.evals.suite.drawings import Series, dots, reliability, steps, trend
from clipling.evals.suite.figures import MOST_CLASSES, Of, description, dots_of, percent, severities
from clipling.evals.suite.wording import metric_name


def reliability_figures(of: Sequence[Of]) -> list[Figure]:
    """A diagram a model, before and after the temperature was fitted."""
    made = []
    for model, result in of:
        before, after = result.details.get("curve", []), result.details.get("curve_scaled", [])
        if before:
            ece, scaled = (result.metrics.get(name) for name in ("ece", "ece_scaled"))
            said = [
                f"ECE {100 * ece:.1f} %" if ece is not None else "",
                f"after scaling {100 * scaled:.1f} %" if scaled is not None else "",
            ]
            note = f"{', '.join(filter(None, said))}. Accuracy by confidence, percent; bars are 95 % intervals."
            svg = reliability(before, after, model.colour, name=description([(model, result)], "reliability"))
            made.append(Figure(model.label, note, svg, (("as it is", -1, "hollow"), ("after scaling", model.colour, "full"))))
    return made


def severity_figure(of: Sequence[Of]) -> Figure | None:
    series = []
    levels = severities(of)
    for model, result in of:
        values = [result.metrics.get("clean"), *(result.metrics.get(f"severity_{s}") for s in levels)]
        series.append(dots_of(model, [percent(v) for v in values]))
    if not any(v is not None for s in series for v in s.values):
        return None
    measure = metric_name(of[0][1].details.get("measure", "acc1"))
    svg = trend([0, *levels], series, name=description(of, "by severity"), x="severity")
    return Figure("By severity", f"{measure[0].upper()}{measure[1:]}, percent, mean over all corruptions.", svg)


def attack_figures(of: Sequence[Of]) -> list[Figure]:
    """Accuracy by the size of the attack: a line PGD, a dashed one FGSM."""
    at = sorted({float(e) for _, result in of for e in result.details.get("epsilons", [])})
    if not at:
        return []
    series = []
    for model, result in of:
        epsilons = [float(e) for e in result.details.get("epsilons", [])]
        for name, look in (("fgsm", "dashed"), ("pgd", "full")):
            known = dict(zip(epsilons, result.details.get(name, []))) | (
                {0.0: result.metrics["clean"]} if "clean" in result.metrics else {}
            )
            if len(known) > 1:
                series.append(Series([percent(known.get(e)) for e in _from_zero(at)], model.colour, look))  # type: ignore[arg-type]
    svg = trend(_from_zero(at), series, name=description(of, "attacks"), x="ε, in 255ths")
    return [Figure("Accuracy under attack", "Top-1 accuracy, percent. Lines: PGD, dashed: FGSM (one step, weaker).", svg)]


def outside_figures(of: Sequence[Of]) -> list[Figure]:
    """The scores of own and foreign pictures, a figure a foreign set and model."""
    made = []
    for model, result in of:
        for each in result.details.get("sets", []):
            found = each.get("histogram")
            if found:
                series = [Series(found["inside"], model.colour), Series(found["outside"], -1, "dashed")]
                svg = steps(
                    found["edges"],
                    series,
                    name=description([(model, result)], f"scores against {each['name']}"),
                    x="largest class probability",
                )
                note = f"Share of pictures, percent; AUROC {100 * each['auroc']:.1f} %."
                made.append(
                    Figure(f"{model.label}, {each['name']}", note, svg, (("its own", model.colour, "full"), ("foreign", -1, "hollow")))
                )
    return made


def prompt_figure(of: Sequence[Of]) -> Figure | None:
    tables = [{e["template"]: e["acc1"] for e in result.details.get("templates", [])} for _, result in of]
    order = sorted(tables[0], key=lambda t: (-tables[0][t], t))[:MOST_CLASSES]
    if not order:
        return None
    labels = ["all together", *order]
    series = [
        dots_of(m, [percent(r.metrics.get("acc1_ensemble")), *(percent(t.get(each)) for each in order)]) for (m, r), t in zip(of, tables)
    ]
    svg = dots(labels, series, name=description(of, "by template"), x="top-1 accuracy, percent", letters=32)
    return Figure("Accuracy by template", f"Percent; sorted by {of[0][0].label}.", svg)


def background_figure(of: Sequence[Of]) -> Figure | None:
    """The classes of the first model, common and rare background tied together; the widest gaps of many."""
    model, result = of[0]
    known = [c for c in result.details.get("classes", []) if c.get("common") is not None and c.get("counter") is not None]
    known = sorted(known, key=lambda c: (c["counter"] - c["common"], c["name"]))
    if not known:
        return None
    note = f"Of {model.label}, percent; widest gap first" + (
        f", {MOST_CLASSES} of {len(known)} classes." if len(known) > MOST_CLASSES else "."
    )
    known = known[:MOST_CLASSES]
    columns = [[percent(c[key]) for c in known] for key in ("common", "counter")]
    series = [Series(columns[0], model.colour), Series(columns[1], model.colour, "hollow")]
    svg = dots([c["name"] for c in known], series, name=description([of[0]], "backgrounds"), x="accuracy, percent", joined=True)
    legend = (("common background", model.colour, "full"), ("rare background", model.colour, "hollow"))
    return Figure("Gap by class", note, svg, legend)


def _from_zero(at: Sequence[float]) -> list[float]:
    return [0.0, *(a for a in at if a)]
