"""Suites on models: opens them, measures them beside their untrained start and what could be had ready-made, writes the report."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipling.assess import seen_in_training
from clipling.engine.runtime import Runtime
from clipling.errors import UserError, near
from clipling.evals.results import CLASSIFICATION, RETRIEVAL, Result, read_results
from clipling.evals.suite import judge
from clipling.evals.suite.compared import Comparison, ModelResults
from clipling.evals.suite.dataset import Dataset
from clipling.evals.suite.plan import DatasetSpec, Plan, named_plan
from clipling.evals.suite.plan_file import read_plan
from clipling.evals.suite.run import Outcome, run_plan
from clipling.evals.suite.subject import Subject
from clipling.subjects import start_of, subject_of

BESIDE = frozenset({CLASSIFICATION, RETRIEVAL, "queries"})
"""What is measured of the untrained start and of ready-made models: the numbers that verdicts are about."""
ROLES = ("model", "untrained", "ready")


@dataclass(frozen=True)
class Beside:
    """What is measured beside the model. ready: models by name; None looks for one in the hub's cache."""

    untrained: bool = True
    ready: tuple[str, ...] | None = None


def plan_of(suite: str, specs: Sequence[DatasetSpec]) -> Plan:
    """A suite by name on these datasets, or a .yaml file that names its own."""
    if not suite.endswith((".yaml", ".yml")):
        return named_plan(suite, specs)
    if specs:
        raise UserError(f"{suite} names its own datasets, so --data would be ignored. Leave it out, or add it to the file.")
    return read_plan(Path(suite))


def run_suite(
    model: str,
    plan: Plan,
    out: Path,
    *,
    beside: Beside | None = None,
    pictures: bool = True,
    say: Callable[[str], Any] = lambda line: None,
    runtime: Runtime | None = None,
) -> dict[str, Any]:
    """Measures `model` by `plan`, with what stands beside it, and writes `out/report.html`.

    Results that are there already, of the same weights, data and settings, are kept. Returns the table, what was skipped and why,
    and the verdict, JSON-able.
    """
    beside, runtime = beside or Beside(), runtime or Runtime()
    opened: dict[str, Dataset] = {}
    main = subject_of(model, runtime=runtime)
    made = run_plan(main, plan, out, opened=opened, warnings=lambda d: seen_in_training(model, d.source), say=say)
    outcomes = {"model": made}
    if beside.untrained:
        start = start_of(model, main.student, runtime)
        if start.model_hash != main.model_hash:
            outcomes["untrained"] = _beside(start, plan, out, opened, "untrained", say, start_of=main.model_hash)
    for number, other in enumerate(_named(beside.ready, runtime) if beside.ready is not None else _ready(say, runtime)):
        outcomes[f"ready {number}"] = _beside(other, plan, out, opened, "ready", say)
    if not runtime.first:
        runtime.wait()
        return _as_json(main, made, outcomes, plan)
    written = report([out], out / "report.html", pictures=pictures, first=_identity(made.results[0]))
    runtime.wait()
    return {**written, **_as_json(main, made, outcomes, plan)}


def _named(specs: Sequence[str], runtime: Runtime) -> Iterator[Subject]:
    for spec in specs:
        yield subject_of(spec, runtime=runtime)


def _ready(say: Callable[[str], Any], runtime: Runtime) -> Iterator[Subject]:
    """The first ready-made model of the hub's cache that can be opened; nobody asked for it, so one that cannot costs nothing."""
    from clipling.models.ready import cached

    for name, spec in cached().items():
        try:
            yield subject_of(spec, None if "@" in spec else Path(name).name, runtime)
            return
        except UserError as error:
            say(f"{name} lies in the hub's cache and cannot be measured beside the model: {error}")


def _beside(
    subject: Subject, plan: Plan, out: Path, opened: dict[str, Dataset], role: str, say: Callable[[str], Any], start_of: str = ""
) -> Outcome:
    """Results of other roles live in a folder of their own, so that CLIP_benchmark's tools see one model a folder."""
    return run_plan(subject, plan, out / role, opened=opened, tasks=BESIDE, start_of=start_of, say=say)


def report(folders: Sequence[Path], out: Path, *, pictures: bool = True, first: str | None = None, credits: str = "") -> dict[str, Any]:
    """One page for the results in these folders. `first`: the label of the model that the others are compared with."""
    from clipling.evals.suite.page import write_page

    for folder in folders:
        if (folder / "recipe.yaml").is_file():
            raise UserError(
                f"{folder} is a run, and a report is made of results: first clipling eval {folder} --suite quick --data SRC --out RESULTS, "
                f"then clipling report RESULTS. Runs among themselves: clipling compare {folder} OTHER_RUN"
            )
    found = [read_models(folder) for folder in folders]
    if not any(model.role == "model" for group in found for model in group):
        places = ", ".join(map(str, folders))
        raise UserError(f"{places}: no results. Make some with: clipling eval MODEL --suite quick --data SRC --out DIR")
    # What stands beside several models is compared by the results of the first one's folder.
    found.sort(key=lambda group: not any(_called(model, first) for model in group))
    merged = joined([model for group in found for model in group])
    merged.sort(key=lambda model: (not _called(model, first), ROLES.index(model.role)))
    if first is not None and not _called(merged[0], first):
        raise UserError(f"--first {first!r} is none of the models. {near(first, [_short(model.label) for model in merged])}")
    names = _names([model.label for model in merged])
    models = [replace(model, label=name, colour=number) for number, (model, name) in enumerate(zip(merged, names))]
    comparison = judge.compare(models)
    write_page(out, models, comparison, pictures=pictures, credits=credits)
    return {"report": str(out), "verdict": verdict_text(comparison), "tone": comparison.tone, "warnings": comparison.warnings}


def _called(model: ModelResults, name: str | None) -> bool:
    return name in (model.label, _short(model.label))


def joined(models: Sequence[ModelResults]) -> list[ModelResults]:
    """One entry a model: results of one model on several datasets add up, and what stands beside several models is there once.

    Raises UserError for two results of a user's model on one dataset.
    """
    made: dict[tuple[str, str], ModelResults] = {}
    for model in models:
        what = min(model.hashes, default=model.label)
        key = (model.role, f"{model.label} {what}" if model.role == "model" else what)
        known = made.setdefault(key, model)
        if known is not model:
            if model.role == "model" and model.places.keys() & known.places.keys():
                raise UserError(f"the results of {model.label} are given twice; give every folder once")
            more = [r for r in model.results if (r.dataset, r.task) not in known.places]
            owners = sorted(known.start_of | model.start_of)
            results = [replace(r, made={**r.made, "start_of": owners}) if owners else r for r in (*known.results, *more)]
            made[key] = replace(known, results=results, places={**model.places, **known.places})
    return list(made.values())


def _names(labels: Sequence[str]) -> list[str]:
    """Labels without the hash of the model, where they differ without it; with a number where one label has several models."""
    labels = [f"{label} ({labels[:n].count(label) + 1})" if labels.count(label) > 1 else label for n, label in enumerate(labels)]
    short = [_short(label) for label in labels]
    return [few if short.count(few) == 1 else label for few, label in zip(short, labels)]


def _short(label: str) -> str:
    return re.sub(r"[ -][0-9a-f]{8}$", "", label)


def read_models(folder: Path) -> list[ModelResults]:
    """The models whose results are in a folder, and in its folders `untrained` and `ready`."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder of results. Make one with: clipling eval MODEL --suite quick --data SRC --out {folder}")
    made = []
    for role, place in (("model", folder), ("untrained", folder / "untrained"), ("ready", folder / "ready")):
        groups: dict[str, list[Result]] = {}
        for result in read_results(place):
            groups.setdefault(_identity(result), []).append(result)
        made += [
            ModelResults(label, 0, results, role, {(r.dataset, r.task): place for r in results})  # type: ignore[arg-type]
            for label, results in groups.items()
        ]
    return made


def _identity(result: Result) -> str:
    return f"{result.model} {result.pretrained}".strip()


def verdict_text(comparison: Comparison) -> str:
    return "\n".join([f"{comparison.title}: {comparison.text}", *(f"- {line}" for line in (*comparison.points, *comparison.warnings))])


def _as_json(main: Subject, made: Outcome, outcomes: dict[str, Outcome], plan: Plan) -> dict[str, Any]:
    return {
        "model": main.name,
        "suite": plan.name,
        "kept": sum(o.kept for o in outcomes.values()),
        "made": sum(len(o.results) - o.kept for o in outcomes.values()),
        "skipped": [{"dataset": d, "task": t, "reason": reason} for d, t, reason in made.skipped],
        "results": [
            {"dataset": r.dataset, "task": r.task, "metrics": r.metrics, "intervals": r.intervals, "size": r.size, "notes": r.notes}
            for r in made.results
        ],
    }
