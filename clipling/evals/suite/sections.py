"""The sections of one dataset: for each task that was run, its plots, tables and pictures, and the notes that concern it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from clipling.evals.results import Result
from clipling.evals.suite import figures, trust
from clipling.evals.suite import pictures as shown
from clipling.evals.suite.blocks import Checks, Figure, Folded, Grid, Remark, Section
from clipling.evals.suite.compared import ModelResults
from clipling.evals.suite.pictures import Pictures
from clipling.evals.suite.tables import backgrounds, confusions, heat, numbers, outside
from clipling.evals.suite.wording import SECTIONS

Of = list[tuple[ModelResults, Result]]
MOST_METRICS = 14


def sections(dataset: str, models: Sequence[ModelResults], pictures: Pictures, prefix: str) -> list[Section]:
    """In the order of wording.SECTIONS, what is not known there last. Cost has a section of its own, over all datasets."""
    tasks = list(dict.fromkeys(r.task for m in models for r in m.results if r.dataset == dataset))
    known = [task for task in SECTIONS if task in tasks]
    made = []
    for task in [*known, *(task for task in tasks if task not in SECTIONS)]:
        if task == "cost":
            continue
        of = [(m, r) for m in models for r in m.results if r.dataset == dataset and r.task == task]
        title, how = SECTIONS.get(task, (task.replace("_", " ").capitalize(), ""))
        blocks = [block for block in _BUILDERS.get(task, _plain)(of, pictures) if block is not None]
        legend = [m for m, _ in of] if len(of) > 1 and any(_plotted(b) for b in blocks) else []
        made.append(Section(f"{prefix}-{task}", title, how, blocks, [*unlike(of), *remarks(of)], legend))
    return made


def remarks(of: Of) -> list[Remark]:
    """Notes and warnings of results, each once, with the models that it concerns where it does not concern all."""
    found: dict[tuple[bool, str], list[ModelResults]] = {}
    for model, result in of:
        for warning, lines in ((True, result.warnings), (False, result.notes)):
            for line in lines:
                who = found.setdefault((warning, line), [])
                if model not in who:
                    who.append(model)
    everyone = len({m.label for m, _ in of})
    return [
        Remark(text, [] if len(who) == everyone else who, warning)
        for (warning, text), who in sorted(found.items(), key=lambda item: not item[0][0])
    ]


def unlike(of: Of) -> list[Remark]:
    """A warning where models stand side by side that were not measured alike."""
    made = []
    for words, key in (
        ("pictures or captions", lambda r: r.data_hash),
        ("settings", lambda r: sorted(map(repr, r.settings.items()))),
        ("prompts", lambda r: r.prompts),
    ):
        first = key(of[0][1])
        others = [model for model, result in of[1:] if key(result) != first]
        if others:
            made.append(Remark(f"measured with other {words} than {of[0][0].label}: the numbers cannot be compared.", others, True))
    return made


def _classes(of: Of, pictures: Pictures) -> list[Any]:
    confused = [confusions(m, r) for m, r in of]
    others = [Folded(t.title, [t]) for t in confused[1:] if t]
    return [_grid(figures.class_figure(of), confused[0]), *others, *shown.class_mistakes(of, pictures)]


def _retrieval(of: Of, pictures: Pictures) -> list[Any]:
    recalls = [name for d in ("i2t", "t2i") for name in of[0][1].metrics if name.startswith(f"{d}_recall@")]
    return [numbers(of, recalls), *shown.retrieval_galleries(of, pictures)]


def _calibration(of: Of, pictures: Pictures) -> list[Any]:
    names = ("ece", "nll", "brier", "temperature", "ece_unscaled_half", "ece_scaled", "nll_scaled", "brier_scaled")
    return [_grid(*trust.reliability_figures(of), numbers(of, names))]


def _corruptions(of: Of, pictures: Pictures) -> list[Any]:
    each = [Folded(t.title, [t]) if n else t for n, (m, r) in enumerate(of) if (t := heat(m, r))]
    return [_grid(trust.severity_figure(of), numbers(of, ("clean", "corrupted", "kept"))), *each]


def _attacks(of: Of, pictures: Pictures) -> list[Any]:
    names = [name for name in of[0][1].metrics if name == "clean" or name.startswith("pgd@")]
    checks: list[Any] = []
    for number, (model, result) in enumerate(of):
        found = [(c["name"].replace("_", " "), bool(c["passed"]), _check(c)) for c in result.details.get("checks", [])]
        if found:
            made = Checks(f"Checks of {model.label}", model.colour, found)
            title = f"{made.title}: {sum(passed for _, passed, _ in found)} of {len(found)} passed"
            checks.append(made if number == 0 else Folded(title, [replace(made, title="")]))
    return [_grid(*trust.attack_figures(of), numbers(of, names)), *checks]


def _check(check: dict[str, Any]) -> str:
    found = check.get("value")
    said = "" if found is None else f"found: {found:.3g}".replace("-", "−") if isinstance(found, float) else f"found: {found}"
    return "; ".join(part for part in (str(check.get("what", "")), said) if part)


def _outside(of: Of, pictures: Pictures) -> list[Any]:
    """The scores of the first model open when there are many."""
    plots = trust.outside_figures(of)
    count = len(plots) if len(plots) <= 6 else len(of[0][1].details["sets"])
    rest = [Folded("Scores by the other models", [Grid(plots[count:])])] if count < len(plots) else []
    return [outside(of), _grid(*plots[:count]), *rest]


def _prompts(of: Of, pictures: Pictures) -> list[Any]:
    names = ("acc1_ensemble", "acc1_mean", "acc1_worst", "acc1_best", "acc1_spread")
    return [_grid(trust.prompt_figure(of), numbers(of, names))]


def _backgrounds(of: Of, pictures: Pictures) -> list[Any]:
    names = ("common", "counter", "gap", "worst_gap", "gap_same_half")
    title = "Backgrounds of each class, and accuracy before each"
    each = [Folded(f"{title}, {m.label}", [grid]) for m, r in of if (grid := _grid(*backgrounds(r)))]
    return [_grid(trust.background_figure(of), numbers(of, names)), *each]


def _negatives(of: Of, pictures: Pictures) -> list[Any]:
    names = [name for name in of[0][1].metrics if not name.startswith("blind/") or name == "blind/mean"]
    return [_grid(figures.kind_figure(of), numbers(of, names)), *shown.negative_examples(of, pictures)]


def _geometry(of: Of, pictures: Pictures) -> list[Any]:
    return [_grid(numbers(of, list(of[0][1].metrics)), *figures.spectrum_figures(of))]


def _probe(of: Of, pictures: Pictures) -> list[Any]:
    return [_grid(numbers(of, list(of[0][1].metrics)), figures.tried_figure(of, "C", "C, inverse of the regularisation"))]


def _knn(of: Of, pictures: Pictures) -> list[Any]:
    return [_grid(numbers(of, list(of[0][1].metrics)), figures.tried_figure(of, "k", "neighbours"))]


def _queries(of: Of, pictures: Pictures) -> list[Any]:
    names = [name for name in of[0][1].metrics if "/" not in name]
    return [_grid(figures.slice_figure(of), numbers(of, names)), *shown.worst_queries(of, pictures)]


def _described(of: Of, pictures: Pictures) -> list[Any]:
    names = ("acc1", "acc1_names", "acc1_normalised_mean", "mean_per_class_recall")
    return [_grid(figures.described_figure(of), numbers(of, names)), *shown.explained_pictures(of, pictures)]


def _plain(of: Of, pictures: Pictures) -> list[Any]:
    return [numbers(of, list(of[0][1].metrics)[:MOST_METRICS])]


def _grid(*blocks: Any) -> Grid | None:
    """What is there of the blocks."""
    known = [block for block in blocks if block is not None]
    return Grid(known) if known else None


def _plotted(block: Any) -> bool:
    return isinstance(block, Figure) or (isinstance(block, Grid) and any(map(_plotted, block.blocks)))


_BUILDERS: dict[str, Callable[[Of, Pictures], list[Any]]] = {
    "zeroshot_classification": _classes,
    "zeroshot_retrieval": _retrieval,
    "queries": _queries,
    "linear_probe": _probe,
    "knn": _knn,
    "descriptions": _described,
    "prompt_sensitivity": _prompts,
    "calibration": _calibration,
    "backgrounds": _backgrounds,
    "outside": _outside,
    "corruptions": _corruptions,
    "attacks": _attacks,
    "compositionality": _negatives,
    "geometry": _geometry,
}
